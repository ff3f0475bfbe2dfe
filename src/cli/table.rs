//! Tables for people: columns as wide as their widest cell, two spaces between them.

use serde_json::Value;

use super::ordered::Ordered;
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

/// The fields of an object in their order, one a line, values aligned.
pub(super) fn fields(object: &Ordered) -> String {
    let Ordered::Object(fields) = object else {
        return cell(object);
    };
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line =
        |(name, value): &(String, Ordered)| format!("{:<width$}  {}", plain(name), cell(value));
    fields.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The rows of a list: these fields of every entry.
pub(super) fn rows(items: &[Ordered], fields: &[&str]) -> Vec<Vec<String>> {
    let row = |item: &Ordered| fields.iter().map(|field| cell(&item[*field])).collect();
    items.iter().map(row).collect()
}

/// One value as a person reads it.
pub(super) fn cell(value: &Ordered) -> String {
    match value {
        Ordered::Plain(Value::Null) => "-".to_owned(),
        Ordered::Plain(Value::String(text)) => plain(text),
        Ordered::List(entries) => entries.iter().map(cell).collect::<Vec<_>>().join(","),
        Ordered::Plain(_) | Ordered::Object(_) => plain(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Ordered, fields, rows, table};

    fn parse(text: &str) -> Ordered {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_control_characters_are_replaced() {
        let items = [parse(r#"{"id":"1","name":"A\u001b[2J"}"#), parse(r#"{"id":"22","n":1}"#)];

        let text = table(&["ID", "NAME"], &rows(&items, &["id", "name"]));

        assert_eq!(text, "ID  NAME\n1   A\u{fffd}[2J\n22  -");
    }

    #[test]
    fn fields_stand_in_the_order_of_the_answer() {
        let text = fields(&parse(r#"{"id":"sc_1","email":"a@b.c","createdAt":null}"#));

        assert_eq!(text, "id         sc_1\nemail      a@b.c\ncreatedAt  -");
    }
}
