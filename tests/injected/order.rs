//! The order in which files reach the disk.

use crate::scene::Scene;
use crate::trace::Call;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// A file or directory is synced before it gets its name, a directory after the last name has come
/// into it, and the directory that it lies in afterwards: after a power cut a name stands for the
/// whole of what it names.
#[test]
fn files_reach_the_disk_before_their_names() {
    let calls = Scene::new("sft", &[]).record("ordered");
    // When each path was synced, and when a name last came into it.
    let (mut synced, mut named) = (HashMap::<&str, usize>::new(), HashMap::<String, usize>::new());
    let mut waits: HashSet<String> = HashSet::new();
    let mut renames = 0;
    for (i, Call { function, path, .. }) in calls.iter().enumerate() {
        match function.as_str() {
            "fsync" => {
                waits.remove(path);
                synced.insert(path, i);
            }
            "rename" => {
                let parent = Path::new(path).parent().unwrap().display().to_string();
                waits.insert(parent.clone());
                named.insert(parent, i);
                let name = Path::new(path).file_name().unwrap().to_str().unwrap();
                if name.starts_with(".tmp-") {
                    renames += 1;
                    let at = synced.get(path.as_str());
                    let at = at.unwrap_or_else(|| panic!("{path} was not synced"));
                    assert!(named.get(path).is_none_or(|n| n < at), "{path} was synced too early");
                }
            }
            _ => {}
        }
    }
    assert!(waits.is_empty(), "not synced after a rename: {waits:?}");
    // Checkpoints, their two files each, the model and more.
    assert!(renames > 4 * 3, "{renames}");
}

/// Everything that a run leaves beside its logs was written under a hidden name.
#[test]
fn nothing_is_written_in_its_place() {
    let scene = Scene::new("sft", &[]);
    let calls = scene.record("in_place");
    let run = scene.path("in_place").join("run");
    let run = run.canonicalize().unwrap();
    let logs = ["metrics.jsonl", "duplex.lock"];
    for call in calls.iter().filter(|c| c.function == "write") {
        let Ok(inside) = Path::new(&call.path).strip_prefix(&run) else { continue };
        let hidden = inside.iter().any(|part| part.to_str().unwrap().starts_with(".tmp-"));
        let log =
            logs.iter().any(|log| inside == Path::new(log)) || inside.starts_with("tensorboard");
        assert!(hidden || log, "{}", inside.display());
    }
}
