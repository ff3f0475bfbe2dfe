//! `rollcall nodes`: the servers that share a store, and who sends for which shards.

use clap::Args;
use serde_json::Value;

use super::connection::{Connection, items};
use super::ordered::Ordered;
use super::output;
use super::table::{cell, table};

/// Where to ask.
#[derive(Debug, Args)]
pub(super) struct NodesArgs {
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command.
pub(super) async fn run(args: NodesArgs) -> anyhow::Result<()> {
    let connection = args.connection;
    let result = connection.admin()?.query(&["v1", "admin", "nodes"], &[]).await?;
    connection.show(&result, |result| list(items(result)))?;
    let free = cell(&result["freeShards"]);
    if !free.is_empty() {
        output::complain(&format!("no node has these shards at the moment: {free}"));
    }
    Ok(())
}

fn list(nodes: &[Ordered]) -> String {
    let row = |node: &Ordered| {
        let mut row: Vec<String> =
            ["name", "id", "version", "since"].map(|field| cell(&node[field])).into();
        row.push(match &node["renewedMillisAgo"] {
            Ordered::Plain(Value::Number(millis)) => {
                let millis = millis.as_u64().unwrap_or_default();
                format!("{}.{} s ago", millis / 1_000, millis % 1_000 / 100)
            }
            other => cell(other),
        });
        let shards = cell(&node["shards"]);
        let count = cell(&node["shardCount"]);
        row.push(if shards.is_empty() { count } else { format!("{count}: {shards}") });
        row
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    table(&["NODE", "ID", "VERSION", "SINCE", "RENEWED", "SHARDS"], &rows)
}

#[cfg(test)]
mod tests {
    use super::list;

    #[test]
    fn a_node_is_a_line_with_its_shards_at_the_end() {
        let nodes = [
            r#"{"name":"eu-1","id":"0190","version":"1.2.3","since":"t","renewedMillisAgo":12480,"shardCount":23,"shards":"0-21,40"}"#,
            r#"{"name":"embedded","id":null,"version":"1.2.3","since":null,"renewedMillisAgo":null,"shardCount":0,"shards":""}"#,
        ]
        .map(|text| serde_json::from_str(text).unwrap());

        assert_eq!(
            list(&nodes),
            "NODE      ID    VERSION  SINCE  RENEWED     SHARDS\n\
             eu-1      0190  1.2.3    t      12.4 s ago  23: 0-21,40\n\
             embedded  -     1.2.3    -      -           0"
        );
    }
}
