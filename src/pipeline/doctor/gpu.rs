//! GPUs and their driver, and the device that a run would compute on.

use super::finding::{Finding, size};
use crate::device::{Card, Device, cuda};
use crate::pipeline::config::DeviceChoice;

/// The compute capability and the version of the driver's API that the kernels need.
const CAPABILITY: (i32, i32) = (8, 0);
const DRIVER: i32 = 13_000;

pub(super) fn look(choice: DeviceChoice) -> Vec<Finding> {
    let cards = cuda::cards();
    let mut all = match &cards {
        Err(e) => vec![Finding::note("GPU", e.to_string()).with("count", 0)],
        Ok(cards) => cards.iter().enumerate().map(|(i, c)| card(i, c)).collect(),
    };
    all.push(device(choice, cards.is_ok_and(|c| !c.is_empty())));
    all
}

fn card(ordinal: usize, card: &Card) -> Finding {
    const NAME: &str = "GPU";
    let ((major, minor), driver) = (card.capability, card.driver);
    let text = format!(
        "cuda:{ordinal}: {}, compute capability {major}.{minor}, {}, driver for CUDA {}.{}",
        card.name,
        size(card.memory as u64),
        driver / 1000,
        driver % 1000 / 10
    );
    let finding = if card.capability < CAPABILITY {
        Finding::note(NAME, text)
            .advise("the kernels need compute capability 8.0 or more; use the CPU")
    } else if driver < DRIVER {
        Finding::note(NAME, text)
            .advise("the kernels need a driver for CUDA 13.0 or later; renew it")
    } else {
        Finding::ok(NAME, text)
    };
    finding
        .with("device", format!("cuda:{ordinal}"))
        .with("name", card.name.clone())
        .with("capability", format!("{major}.{minor}"))
        .with("memory", card.memory)
        .with("multiprocessors", card.multiprocessors)
        .with("driver", driver)
}

/// Opens the device as a run does, which loads the kernels where it is a GPU.
fn device(choice: DeviceChoice, has_card: bool) -> Finding {
    const NAME: &str = "device";
    let finding = match choice.open() {
        Ok((device, text)) => {
            let text = format!("{device}: {text}");
            // The text says why it is not the GPU.
            let unused = has_card && device == Device::Cpu && choice == DeviceChoice::Auto;
            let finding = if unused { Finding::note(NAME, text) } else { Finding::ok(NAME, text) };
            finding.with("used", device.to_string())
        }
        Err(e) => Finding::problem(
            NAME,
            e.to_string(),
            "use --device cpu, or auto, or mend what is named",
        ),
    };
    finding.with("kernels", cfg!(feature = "cuda"))
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    #[test]
    fn cards_too_old_are_noted_with_the_reason() {
        let good = Card {
            name: "Test".into(),
            capability: (9, 0),
            multiprocessors: 4,
            memory: 3 << 30,
            shared: 0,
            driver: 13_020,
        };
        let f = card(1, &good);
        assert_eq!(f.mark, Mark::Ok);
        assert_eq!(f.text, "cuda:1: Test, compute capability 9.0, 3.0 GiB, driver for CUDA 13.2");
        let old = card(0, &Card { capability: (7, 5), ..good.clone() });
        assert!(old.mark == Mark::Note && old.advice.unwrap().contains("8.0"));
        let driver = card(0, &Card { driver: 12_080, ..good });
        assert!(driver.mark == Mark::Note && driver.text.ends_with("12.8"), "{}", driver.text);
    }

    #[test]
    fn a_device_that_was_asked_for_and_is_not_there_is_a_problem() {
        let f = device(DeviceChoice::On(Device::Cuda(4096)), false);
        assert!(f.mark == Mark::Problem && f.text.contains("cuda:4096"), "{}", f.text);
        assert_eq!(device(DeviceChoice::On(Device::Cpu), true).mark, Mark::Ok);
        assert_ne!(device(DeviceChoice::Auto, false).mark, Mark::Problem);
    }
}
