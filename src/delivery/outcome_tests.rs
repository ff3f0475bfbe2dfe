//! The table of outcomes, value by value.

use std::time::Duration;

use super::{Outcome, judge_answer};
use crate::domain::clock::Timestamp;

fn check(status: u16, retry_after: Option<&str>) -> Outcome {
    judge_answer(status, retry_after, Timestamp::parse("1994-11-06T08:49:30Z").unwrap())
}

fn pause(seconds: u64) -> Outcome {
    Outcome::Pause { after: Some(Duration::from_secs(seconds)) }
}

#[test]
fn any_2xx_is_delivered_and_its_neighbours_are_not() {
    for status in [200, 201, 202, 204, 206, 226, 299] {
        assert_eq!(check(status, None), Outcome::Delivered, "{status}");
        assert_eq!(check(status, Some("60")), Outcome::Delivered, "{status}");
    }
    for status in [0, 100, 101, 199, 300, 301, 302, 304, 307, 308, 399] {
        assert_eq!(check(status, Some("60")), Outcome::Failed, "{status}");
    }
}

#[test]
fn gone_is_410_alone() {
    assert_eq!(check(410, None), Outcome::Gone);
    assert_eq!(check(410, Some("60")), Outcome::Gone);
    for status in [400, 401, 403, 404, 408, 409, 411, 413, 422, 425, 428, 430, 451, 499] {
        assert_eq!(check(status, Some("60")), Outcome::Failed, "{status}");
    }
}

#[test]
fn a_pause_is_asked_for_by_429_or_by_503_with_retry_after() {
    assert_eq!(check(429, None), Outcome::Pause { after: None });
    assert_eq!(check(429, Some("60")), pause(60));
    assert_eq!(check(503, Some("60")), pause(60));
    assert_eq!(check(503, Some("soon")), Outcome::Pause { after: None });
    assert_eq!(check(503, None), Outcome::Failed);
    for status in [500, 501, 502, 504, 505, 520, 599, 600, 999] {
        assert_eq!(check(status, Some("60")), Outcome::Failed, "{status}");
    }
}

#[test]
fn retry_after_in_seconds_is_clamped_to_one_second_and_one_hour() {
    for (text, seconds) in [
        ("0", 1),
        ("1", 1),
        ("2", 2),
        (" 7\t", 7),
        ("0000000000000000000000007", 7),
        ("3599", 3599),
        ("3600", 3600),
        ("3601", 3600),
        ("99999999999999999999999999", 3600),
    ] {
        assert_eq!(check(429, Some(text)), pause(seconds), "{text}");
    }
}

#[test]
fn retry_after_takes_the_three_forms_of_a_date() {
    for (text, seconds) in [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 7),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 7),
        ("Sun Nov  6 08:49:37 1994", 7),
        ("Sun, 06 Nov 1994 08:49:30 GMT", 1),
        ("Sun, 06 Nov 1994 08:49:29 GMT", 1),
        ("Sat, 01 Jan 1994 00:00:00 GMT", 1),
        ("Sun, 06 Nov 1994 09:49:30 GMT", 3600),
        ("Mon, 07 Nov 1994 08:49:37 GMT", 3600),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
    ] {
        assert_eq!(check(503, Some(text)), pause(seconds), "{text}");
    }
}

#[test]
fn an_unusable_retry_after_names_no_time() {
    for text in [
        "",
        " ",
        "-1",
        "+1",
        "1.5",
        "1 s",
        "60, 60",
        "١",
        "soon",
        "Sun, 06 Nov 1994 08:49:37",
        "Sun, 06 Nov 1994 08:49:37 PST",
        "Sun, 36 Nov 1994 08:49:37 GMT",
        "1994-11-06T08:49:37Z",
    ] {
        assert_eq!(check(429, Some(text)), Outcome::Pause { after: None }, "{text}");
    }
}
