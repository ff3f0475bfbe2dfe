//! Administration: the processes that share the store, and which shards each of them has.

use std::sync::Arc;

use ::http::StatusCode;
use serde_json::{Value, json};

use crate::domain::shard::{Shard, ranges_of};
use crate::http::envelope::success;
use crate::store::rows::NodeRow;

use super::State;
use super::router::{Answer, Call};

pub(super) async fn list_nodes(state: Arc<State>, _call: Call) -> Answer {
    let nodes = state.read.list_nodes().await?;
    Ok(success(StatusCode::OK, &nodes_json(&nodes).to_string()))
}

fn nodes_json(nodes: &[NodeRow]) -> Value {
    let item = |node: &NodeRow| {
        json!({
            "name": node.name,
            "id": node.id,
            "version": node.version,
            "since": node.since.map(|since| since.to_string()),
            "renewedMillisAgo": node.renewed_ago.map(|ago| ago.as_millis()),
            "shardCount": node.shards.len(),
            "shards": ranges_of(&node.shards),
        })
    };
    let items: Vec<Value> = nodes.iter().map(item).collect();
    let taken = |shard: &Shard| nodes.iter().any(|node| node.shards.contains(shard));
    let free: Vec<Shard> = Shard::all().filter(|shard| !taken(shard)).collect();
    json!({"items": items, "freeShards": ranges_of(&free)})
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::nodes_json;
    use crate::domain::clock::Timestamp;
    use crate::domain::shard::Shard;
    use crate::store::rows::NodeRow;

    #[test]
    fn each_node_says_what_it_has_and_the_rest_is_free() {
        let shards =
            |numbers: std::ops::Range<i16>| numbers.filter_map(Shard::from_number).collect();
        let nodes = [
            NodeRow {
                name: "eu-1".to_owned(),
                id: Some("0190".to_owned()),
                version: "1.2.3".to_owned(),
                since: Timestamp::parse("2025-11-23T12:13:20Z"),
                renewed_ago: Some(Duration::from_millis(420)),
                shards: shards(0..22),
            },
            NodeRow { shards: shards(23..64), ..NodeRow::alone() },
        ];

        assert_eq!(
            nodes_json(&nodes),
            json!({
                "items": [
                    {
                        "name": "eu-1",
                        "id": "0190",
                        "version": "1.2.3",
                        "since": "2025-11-23T12:13:20.000Z",
                        "renewedMillisAgo": 420,
                        "shardCount": 22,
                        "shards": "0-21",
                    },
                    {
                        "name": "embedded",
                        "id": null,
                        "version": env!("CARGO_PKG_VERSION"),
                        "since": null,
                        "renewedMillisAgo": null,
                        "shardCount": 41,
                        "shards": "23-63",
                    },
                ],
                "freeShards": "22",
            })
        );
    }
}
