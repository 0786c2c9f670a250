//! The progress bar of a step. The output thread draws it.

use crate::base::Bar;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bar of one step.
pub(super) struct StepBar(ProgressBar);

impl StepBar {
    /// Makes a bar, and draws nothing.
    pub(super) fn new(key: &str, total: u64) -> StepBar {
        let template = "{prefix:<7} {bar:16.cyan/dim} {pos}/{len}  {elapsed}  {wide_msg}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━━─");
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        StepBar(bar.with_style(style).with_prefix(key.to_owned()))
    }
}

impl Bar for StepBar {
    fn above(&self, write: &mut dyn FnMut()) {
        self.0.suspend(write);
    }

    fn advance(&self, position: u64, message: String) {
        self.0.set_position(position);
        self.0.set_message(message);
    }

    fn tick(&self) {
        self.0.tick();
    }
}

impl Drop for StepBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
