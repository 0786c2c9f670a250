//! Where an answer begins in the text of a conversation that a template has rendered.

/// Where an answer begins in `text`, which ends where its own words begin: behind the last that
/// there is of the header of its turn, or as much of it as the template has written. At `least`,
/// where the conversation stops to be the same with and without the answer.
pub(super) fn behind_header(text: &str, header: &str, least: usize) -> usize {
    let ends = (1..=header.len()).rev().filter(|n| header.is_char_boundary(*n));
    let found = ends.filter_map(|n| Some(text.rfind(&header[..n])? + n));
    found.into_iter().find(|end| *end >= least).unwrap_or(least)
}

/// Where an answer begins in `text`, which ends where its own words begin, if the template writes
/// no header: behind what ends most like the prompt of generation.
pub(super) fn behind_ending(text: &str, prompt: &str, least: usize) -> usize {
    let alike = |end: usize| {
        let pairs = text[..end].bytes().rev().zip(prompt.bytes().rev());
        pairs.take_while(|(a, b)| a == b).count()
    };
    let ends = (least..=text.len()).filter(|end| text.is_char_boundary(*end));
    ends.max_by_key(|end| alike(*end)).unwrap_or(least)
}

/// Bytes that two texts begin with alike.
pub(super) fn common(a: &str, b: &str) -> usize {
    let mut n = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(n) {
        n -= 1;
    }
    n
}
