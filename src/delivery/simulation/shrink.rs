//! Runs a story, and makes a story that breaks a promise short.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::checks::{Broken, Check};
use super::steps::Step;
use super::world::{Counts, World};

/// Runs a story in a world of its own.
pub(super) fn run(story: &[Step]) -> Result<Counts, Broken> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(false);
        world.run(story).map(|()| world.counts)
    }));
    outcome.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Broken { check: Check::NoPanic, detail: text.unwrap_or_default() })
    })
}

/// What happens in a story, step by step.
pub(super) fn trace(story: &[Step]) -> String {
    let mut world = World::new(true);
    // A panic has told its own story.
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run(story)));
    let end = if outcome.is_ok() { "" } else { "(the lane panics)\n" };
    world.trace.unwrap_or_default() + end
}

/// Leaves out steps, many at a time and then one by one, as long as the same check fails.
pub(super) fn shrink(story: &[Step], check: Check) -> Vec<Step> {
    let breaks = |story: &[Step]| run(story).is_err_and(|broken| broken.check == check);
    let mut shortest = story.to_vec();
    let mut chunk = shortest.len().div_ceil(2).max(1);
    loop {
        let before = shortest.len();
        let mut at = 0;
        while at < shortest.len() {
            let mut shorter = shortest.clone();
            shorter.drain(at..(at + chunk).min(shortest.len()));
            if breaks(&shorter) {
                shortest = shorter;
            } else {
                at += chunk;
            }
        }
        if chunk > 1 {
            chunk = chunk.div_ceil(2);
        } else if shortest.len() == before {
            return shortest;
        }
    }
}

/// The story as it can be pasted into `stories.rs`.
pub(super) fn as_test(story: &[Step]) -> String {
    let in_full = |step: &Step| {
        let text = format!("        Step::{step:?},\n");
        text.replace("answer: ", "answer: Answer::").replace("Write(", "Write(Fate::")
    };
    let steps: Vec<String> = story.iter().map(in_full).collect();
    format!("    story(&[\n{}    ]);\n", steps.concat())
}
