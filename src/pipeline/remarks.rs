//! Warnings about how rows became examples: one line for each kind, with a count and the first row.

use crate::data::{
    ChatFormat, PairExample, PromptExample, Remarks, Row, SftExample, Tokenizer, unread_by_template,
};

/// An example that remembers how it came about.
pub(super) trait Remarked {
    fn remarks(&self) -> Remarks;
}

impl Remarked for SftExample {
    fn remarks(&self) -> Remarks {
        self.remarks
    }
}

impl Remarked for PairExample {
    fn remarks(&self) -> Remarks {
        self.remarks
    }
}

impl Remarked for PromptExample {
    fn remarks(&self) -> Remarks {
        self.remarks
    }
}

/// Rows of one kind: their number, and the place of the first, or its error.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) count: usize,
    pub(super) first: String,
}

impl Rows {
    pub(super) fn add(&mut self, row: &Row) {
        self.add_told(|| format!("{} row {}", row.file, row.row));
    }

    /// Adds a row of which `first` tells, if it is the first.
    pub(super) fn add_told(&mut self, first: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = first();
        }
        self.count += 1;
    }

    /// The line about them, if there are any.
    pub(super) fn line(&self, what: &str) -> Option<String> {
        (self.count > 0).then(|| format!("{} {what}, first: {}", self.count, self.first))
    }
}

/// Rows of a step that a user should know of.
#[derive(Default)]
pub(super) struct Seen {
    prompt_differs: Rows,
    end_added: Rows,
    holds_controls: Rows,
    cut: Rows,
    leaves_out: Rows,
    end_unmarked: Rows,
    /// By the key that the chat template does not read.
    unread: Vec<(String, Rows)>,
}

impl Seen {
    pub(super) fn note(
        &mut self,
        remarks: Remarks,
        row: &Row,
        tokenizer: &Tokenizer,
        format: ChatFormat,
    ) {
        let Remarks { prompt_differs, end_added, holds_controls, cut, leaves_out, end_unmarked } =
            remarks;
        let kinds = [
            (prompt_differs, &mut self.prompt_differs),
            (end_added, &mut self.end_added),
            (holds_controls, &mut self.holds_controls),
            (cut, &mut self.cut),
            (leaves_out, &mut self.leaves_out),
            (end_unmarked, &mut self.end_unmarked),
        ];
        kinds.into_iter().filter(|(is, _)| *is).for_each(|(_, rows)| rows.add(row));
        for key in unread_by_template(row, tokenizer, format) {
            let place = self.unread.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
                self.unread.push((key, Rows::default()));
                self.unread.len() - 1
            });
            self.unread[place].1.add(row);
        }
    }

    pub(super) fn warnings(&self, step: &str) -> Vec<String> {
        let differs = format!(
            "rows of {step} are written by the chat template otherwise than as generation prompt \
             and answer; they are trained as the template writes them"
        );
        let added = format!(
            "rows of {step} get the end token behind the last answer, since the chat template ends \
             no turn with a token"
        );
        let controls = format!(
            "rows of {step} hold the text of control tokens, which is taken as plain text; \
             --pre-rendered makes control tokens of it"
        );
        let cut = format!(
            "rows of {step} are longer than --max-seq-len: their ends, with the end token, are cut \
             off and not trained"
        );
        let left = format!(
            "rows of {step} have a message that the chat template leaves out of what it writes"
        );
        let unmarked = format!(
            "rows of {step} end their last turn outside of the template's {{% generation %}}: the \
             end of a turn is not trained"
        );
        let mut lines: Vec<String> = [
            self.prompt_differs.line(&differs),
            self.end_added.line(&added),
            self.holds_controls.line(&controls),
            self.cut.line(&cut),
            self.leaves_out.line(&left),
            self.end_unmarked.line(&unmarked),
        ]
        .into_iter()
        .flatten()
        .collect();
        lines.extend(self.unread.iter().filter_map(|(key, rows)| {
            rows.line(&format!(
                "rows of {step} have {key:?}, which the chat template does not read"
            ))
        }));
        lines
    }
}

/// The warning of keys in rows that nothing reads, each with the number of rows that have it.
pub(super) fn unused_keys<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<String> {
    let mut counts: Vec<(&str, usize)> = vec![];
    for key in rows.flat_map(|row| &row.unused) {
        match counts.iter_mut().find(|(k, _)| k == key) {
            Some((_, count)) => *count += 1,
            None => counts.push((key, 1)),
        }
    }
    let keys: Vec<String> = counts.iter().map(|(key, n)| format!("{key:?} ({n} rows)")).collect();
    (!keys.is_empty()).then(|| format!("keys of the data that nothing reads: {}", keys.join(", ")))
}
