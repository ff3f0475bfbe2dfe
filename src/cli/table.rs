//! Tables for people: columns as wide as their widest cell, two spaces between them.

use serde_json::Value;

use super::output::plain;

/// Lays out rows below their headings.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut headings.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

/// The fields of an object, one a line, values aligned.
pub(super) fn fields(object: &Value) -> String {
    let Some(object) = object.as_object() else {
        return cell(object);
    };
    let width = object.keys().map(|key| key.chars().count()).max().unwrap_or(0);
    let line = |(key, value): (&String, &Value)| format!("{:<width$}  {}", plain(key), cell(value));
    object.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The rows of a list: these fields of every entry.
pub(super) fn rows(items: &[Value], fields: &[&str]) -> Vec<Vec<String>> {
    let row = |item: &Value| fields.iter().map(|field| cell(&item[*field])).collect();
    items.iter().map(row).collect()
}

/// One value as a person reads it.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        Value::Array(entries) => entries.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => plain(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{rows, table};

    #[test]
    fn columns_are_aligned_and_control_characters_are_replaced() {
        let items = [json!({"id": "1", "name": "A\u{1b}[2J"}), json!({"id": "22", "n": 1})];

        let text = table(&["ID", "NAME"], &rows(&items, &["id", "name"]));

        assert_eq!(text, "ID  NAME\n1   A\u{fffd}[2J\n22  -");
    }
}
