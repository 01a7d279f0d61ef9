//! Tables for people: aligned columns, no frame.

use serde_json::Value;

/// Rows of text under a heading, with columns as wide as their widest cell.
pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A JSON value as a cell: text as it is, nothing as a dash.
pub fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    plain(&text)
}

/// Text with `?` for whatever a foreign name could use to repaint the terminal or to pass for another: control
/// characters, marks that turn the direction of what follows, and blanks of no width.
pub fn plain(text: &str) -> String {
    let is_hidden = |it: char| {
        let turns =
            matches!(it, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
        it.is_control() || turns
    };
    text.chars().map(|it| if is_hidden(it) { '?' } else { it }).collect()
}

/// An age for people: `0.4 s`, `12 s`, `3 min`.
pub fn age(ms: &Value) -> String {
    match ms.as_u64() {
        None => "never".into(),
        Some(ms) if ms < 10_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        Some(ms) if ms < 120_000 => format!("{} s", ms / 1000),
        Some(ms) => format!("{} min", ms / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["FR".into(), "1456".into()], vec!["Finland".into(), "8".into()]];
        let text = table(&["state", "gpus"], &rows);
        assert_eq!(text, "state    gpus\nFR       1456\nFinland  8\n");
    }

    #[test]
    fn a_name_cannot_repaint_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb"), "a?[2Jb");
        assert_eq!(plain("a\u{202e}b\u{200b}c é"), "a?b?c é");
    }
}
