//! Answers to a challenge: consent beside everything that only looks like it.

use super::{Nonce, Step, VerificationFailure, judge_answer};

const CHALLENGE: &str = "0123abcd";

fn check(body: &str) -> Result<(), Step> {
    judge_answer(body.as_bytes(), CHALLENGE)
}

#[test]
fn consent_is_code_and_result_with_the_challenge() {
    for body in [
        r#"{"code":200,"result":{"challenge":"0123abcd"}}"#,
        r#"{"code":0,"result":{"challenge":"0123abcd"}}"#,
        r#" { "result" : { "challenge" : "0123abcd" } , "code" : 200 } "#,
        "\r\n\t{\"code\":200,\"result\":{\"challenge\":\"0123abcd\"}}\n",
        r#"{"code":200,"result":{"challenge":"\u0030123abcd"}}"#,
        r#"{"code":200,"result":{"challenge":"0123abcd","x":[{"y":1},{"y":1}]},"message":null}"#,
        r#"{"code":200,"result":"{\"challenge\":\"0123abcd\"}"}"#,
        r#"{"code":200,"result":" {\"challenge\" : \"0123abcd\", \"x\":1.5e3}\n"}"#,
    ] {
        assert_eq!(check(body), Ok(()), "{body}");
    }
}

#[test]
fn an_echo_of_the_request_is_not_consent() {
    assert_eq!(check(r#"{"challenge":"0123abcd"}"#), Err(Step::Code));
    assert_eq!(check(r#"{"code":200,"challenge":"0123abcd"}"#), Err(Step::Challenge));
    assert_eq!(check(r#"{"result":{"challenge":"0123abcd"}}"#), Err(Step::Code));
}

#[test]
fn code_must_be_200_or_0_as_a_whole_number() {
    for code in
        ["201", "400", "1", "-0", "-200", "200.0", "2e2", "\"200\"", "null", "true", "[200]", "{}"]
    {
        let body = format!(r#"{{"code":{code},"result":{{"challenge":"0123abcd"}}}}"#);
        assert_eq!(check(&body), Err(Step::Code), "{code}");
    }
}

#[test]
fn result_must_hold_exactly_the_challenge() {
    for result in [
        r#"{}"#,
        r#"{"challenge":""}"#,
        r#"{"challenge":"0123abc"}"#,
        r#"{"challenge":"0123abcde"}"#,
        r#"{"challenge":"0123ABCD"}"#,
        r#"{"challenge":" 0123abcd"}"#,
        r#"{"challenge":123}"#,
        r#"{"challenge":["0123abcd"]}"#,
        r#"{"challenge":{"challenge":"0123abcd"}}"#,
        r#"{"Challenge":"0123abcd"}"#,
        r#"[{"challenge":"0123abcd"}]"#,
        r#""0123abcd""#,
        r#""""#,
        r#"null"#,
        r#"200"#,
        r#""{\"challenge\":\"0123abcd\"} x""#,
        r#""{\"challenge\":\"0123abcd\",\"challenge\":\"0123abcd\"}""#,
        r#""[\"0123abcd\"]""#,
        r#""\"{\\\"challenge\\\":\\\"0123abcd\\\"}\"""#,
    ] {
        let body = format!(r#"{{"code":200,"result":{result}}}"#);
        assert_eq!(check(&body), Err(Step::Challenge), "{result}");
    }
    assert_eq!(check(r#"{"code":200}"#), Err(Step::Challenge));
}

#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    let deep = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    for body in [
        "",
        " ",
        "ok",
        "null",
        "200",
        "[]",
        r#""{}""#,
        r#"{"code":200,"code":200,"result":{"challenge":"0123abcd"}}"#,
        r#"{"code":500,"\u0063ode":200,"result":{"challenge":"0123abcd"}}"#,
        r#"{"code":200,"result":{},"result":{"challenge":"0123abcd"}}"#,
        r#"{"code":200,"result":{"challenge":"x","challenge":"0123abcd"}}"#,
        r#"{"code":200,"result":{"challenge":"0123abcd"},"x":[{"a":{"b":1,"b":2}}]}"#,
        r#"{"code":200,"result":{"challenge":"0123abcd"}}{}"#,
        r#"{"code":200,"result":{"challenge":"0123abcd"}} x"#,
        r#"{"code":200,"result":{"challenge":"0123abcd"},}"#,
        r#"{"code":200,"result":{"challenge":"0123abcd"}"#,
        r#"{code:200,"result":{"challenge":"0123abcd"}}"#,
        r#"{'code':200}"#,
        "\u{feff}{\"code\":200,\"result\":{\"challenge\":\"0123abcd\"}}",
        "{\"code\":200,\"result\":{\"challenge\":\"0123abcd\"}}\0",
        &format!(r#"{{"code":200,"result":{{"challenge":"0123abcd"}},"x":{deep}}}"#),
    ] {
        assert_eq!(check(body), Err(Step::Json), "{body:.80}");
    }
    assert_eq!(judge_answer(b"{\"code\":200,\"x\":\"\xff\"}", CHALLENGE), Err(Step::Json));
}

#[test]
fn a_failure_says_the_step_and_at_most_the_status() {
    let failure = |step, status| VerificationFailure { step, status }.to_string();

    assert_eq!(
        failure(Step::Status, Some(500)),
        "url verification failed at step status: the receiver answered 500"
    );
    assert_eq!(
        failure(Step::Status, None),
        "url verification failed at step status: the receiver's answer is not HTTP"
    );
    assert_eq!(
        failure(Step::Tls, None),
        "url verification failed at step tls: no encrypted connection with a trusted certificate"
    );
}

#[test]
fn a_nonce_is_new_each_time_and_hides_its_challenge() {
    let (one, two) = (Nonce::random().unwrap(), Nonce::random().unwrap());

    assert_ne!(one.id, two.id);
    assert_ne!(one.challenge, two.challenge);
    assert_eq!((one.id.len(), one.challenge.len()), (37, 64));
    assert!(one.id.starts_with("chal_"));
    assert!(!format!("{one:?}").contains(&one.challenge));
    assert_eq!(Nonce::from_bytes([1; 16], [255; 32]).challenge, "ff".repeat(32));
}
