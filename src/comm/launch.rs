//! Which rank this process is, as its launcher tells it: `--num-gpus` (`DUPLEX_RANK`, ...),
//! torchrun (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`), Open MPI (`OMPI_COMM_WORLD_*`) or Slurm's srun
//! (`SLURM_PROCID`, `SLURM_STEP_NUM_TASKS`, `SLURM_LOCALID`).

use crate::base::{Error, Result};

/// A process among those that a launcher started together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The launcher's name; `None` without a launcher.
    pub launcher: Option<&'static str>,
    /// Its number.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number among those on this machine.
    pub local_rank: usize,
}

/// The launcher that `--num-gpus` is where ranks have cards.
pub const DUPLEX: &str = "duplex";
/// The environment variable with the open file that its rank 0 listens at.
pub const SOCKET: &str = "DUPLEX_SOCKET";

/// A launcher's environment variables for rank, number of ranks and local rank.
struct Names {
    launcher: &'static str,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
}

/// The innermost first: `--num-gpus` may be used, and torchrun and mpirun run, inside a job of
/// Slurm.
const LAUNCHERS: [Names; 4] = [
    Names {
        launcher: DUPLEX,
        rank: "DUPLEX_RANK",
        size: "DUPLEX_WORLD_SIZE",
        local_rank: "DUPLEX_LOCAL_RANK",
    },
    Names { launcher: "torchrun", rank: "RANK", size: "WORLD_SIZE", local_rank: "LOCAL_RANK" },
    Names {
        launcher: "mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    Names {
        launcher: "srun",
        rank: "SLURM_PROCID",
        // Not SLURM_NTASKS, which a batch script has too, where nothing was started several times.
        size: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
    },
];

/// Which rank this process is by its environment, which `variable` reads. A variable that is empty
/// is not set.
///
/// # Errors
/// A launcher's variables are incomplete, no numbers, or contradict each other.
pub fn launched(variable: impl Fn(&str) -> Option<String>) -> Result<Launch> {
    let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let number = |name: &str, launcher: &str| {
        let Some(value) = set(name) else {
            return Err(Error::user(format!(
                "{name} is not set, but others of {launcher}'s are; start all ranks with \
                 {launcher}, or unset them"
            )));
        };
        let no_number = |_| Error::user(format!("{name} must be a number, not {value:?}"));
        value.trim().parse::<usize>().map_err(no_number)
    };
    for Names { launcher, rank, size, local_rank } in &LAUNCHERS {
        // A size alone is what a launcher of one rank, or somebody's shell, may leave.
        if set(size).is_none() {
            continue;
        }
        let ranks = number(size, launcher)?;
        if ranks == 1 && set(rank).is_none() {
            continue;
        }
        let [rank_value, local] = [number(rank, launcher)?, number(local_rank, launcher)?];
        if rank_value >= ranks {
            return Err(Error::user(format!(
                "{rank} is {rank_value}, but {size} is {ranks}: ranks count from 0"
            )));
        }
        if local > rank_value {
            return Err(Error::user(format!(
                "{local_rank} is {local}, but {rank} is {rank_value}: there are not as many ranks \
                 before it"
            )));
        }
        return Ok(Launch {
            launcher: Some(launcher),
            rank: rank_value,
            size: ranks,
            local_rank: local,
        });
    }
    Ok(Launch { launcher: None, rank: 0, size: 1, local_rank: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[(&str, &str)]) -> Result<Launch> {
        launched(|name| values.iter().find(|v| v.0 == name).map(|v| v.1.to_string()))
    }

    #[test]
    fn every_launcher_tells_which_rank_it_is() {
        let alone = Launch { launcher: None, rank: 0, size: 1, local_rank: 0 };
        assert_eq!(with(&[]).unwrap(), alone);
        assert_eq!(with(&[("WORLD_SIZE", "1")]).unwrap(), alone);
        assert_eq!(with(&[("WORLD_SIZE", ""), ("SLURM_NTASKS", "4")]).unwrap(), alone);
        for Names { launcher, rank, size, local_rank } in &LAUNCHERS {
            // Inside a job of another launcher, which is none of its ranks' business.
            let outer = [("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_PROCID", "0")];
            let inner = [(*rank, "5"), (*size, " 8 "), (*local_rank, "1")];
            let got = with(&[&inner[..], &outer].concat()).unwrap();
            assert_eq!(got, Launch { launcher: Some(launcher), rank: 5, size: 8, local_rank: 1 });
        }
    }

    #[test]
    fn what_a_launcher_cannot_mean_is_refused_by_name() {
        let line = |values: &[(&str, &str)]| with(values).unwrap_err().to_string();
        let error = line(&[("WORLD_SIZE", "4")]);
        assert!(error.starts_with("RANK is not set, but others of torchrun's are"), "{error}");
        let error = line(&[("WORLD_SIZE", "four"), ("RANK", "0")]);
        assert_eq!(error, "WORLD_SIZE must be a number, not \"four\"");
        let mpi = [("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "2")];
        let error = line(&[&mpi[..], &[("OMPI_COMM_WORLD_LOCAL_RANK", "0")]].concat());
        assert!(error.contains("OMPI_COMM_WORLD_RANK is 2"), "{error}");
        let slurm = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_LOCALID", "3")];
        assert!(line(&slurm).starts_with("SLURM_LOCALID is 3"));
    }
}
