//! Signatures against a published vector and against somebody else's implementation, both ways.

use proptest::prelude::{any, prop_assert_eq, proptest};
use standardwebhooks::Webhook;

use super::{VerifyError, format_secret, parse_secret, sign, verify};
use crate::domain::clock::Timestamp;
use crate::domain::subscription::SigningSecret;

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
const SECONDS: i64 = 1_649_367_553;
const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
const SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

fn secret() -> SigningSecret {
    parse_secret(SECRET).unwrap()
}

fn check(timestamp: &str, signature: &str, now_seconds: i64) -> Result<(), VerifyError> {
    let now = Timestamp::from_millis(now_seconds * 1000);
    verify(&secret(), ID, timestamp, signature, BODY, now)
}

#[test]
fn the_published_vector_is_reproduced() {
    assert_eq!(sign(&[secret()], ID, SECONDS, BODY), SIGNATURE);
    assert_eq!(check("1649367553", SIGNATURE, SECONDS), Ok(()));
}

#[test]
fn after_a_rotation_both_secrets_sign() {
    let other = SigningSecret(vec![7; 32]);

    let header = sign(&[other.clone(), secret()], ID, SECONDS, BODY);

    assert_eq!(header, format!("{} {SIGNATURE}", sign(&[other], ID, SECONDS, BODY)));
    assert_eq!(check("1649367553", &header, SECONDS), Ok(()));
}

#[test]
fn every_altered_part_is_refused() {
    let now = Timestamp::from_millis(SECONDS * 1000);
    let other = SigningSecret(vec![7; 32]);
    let refused = Err(VerifyError::NoSignatureFits);

    assert_eq!(verify(&other, ID, "1649367553", SIGNATURE, BODY, now), refused);
    assert_eq!(verify(&secret(), "msg_x", "1649367553", SIGNATURE, BODY, now), refused);
    assert_eq!(verify(&secret(), ID, "1649367554", SIGNATURE, BODY, now), refused);
    assert_eq!(verify(&secret(), ID, "1649367553", SIGNATURE, b"{}", now), refused);
    for signature in [
        "",
        "v1",
        "v1,",
        "v2,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        "v1a,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        "tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw",
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kg==",
        "v1,uZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    ] {
        assert_eq!(check("1649367553", signature, SECONDS), refused, "{signature}");
    }
}

#[test]
fn a_timestamp_is_taken_up_to_five_minutes_either_way() {
    assert_eq!(check("1649367553", SIGNATURE, SECONDS + 300), Ok(()));
    assert_eq!(check("1649367553", SIGNATURE, SECONDS - 300), Ok(()));
    for now in [SECONDS + 301, SECONDS - 301, 0] {
        let refused = Err(VerifyError::TimestampOutOfTolerance);
        assert_eq!(check("1649367553", SIGNATURE, now), refused);
    }
    for timestamp in ["", "now", "+1649367553", "1649367553.0", " 1649367553", "0x62"] {
        let refused = Err(VerifyError::TimestampMalformed);
        assert_eq!(check(timestamp, SIGNATURE, SECONDS), refused, "{timestamp}");
    }
}

#[test]
fn the_reference_implementation_takes_our_signature() {
    let now = jiff::Timestamp::now().as_second();
    let mut headers = http::HeaderMap::new();
    headers.insert("webhook-id", ID.parse().unwrap());
    headers.insert("webhook-timestamp", now.into());
    let signature = sign(&[SigningSecret(vec![1; 24]), secret()], ID, now, BODY);
    headers.insert("webhook-signature", signature.parse().unwrap());

    let theirs = Webhook::new(SECRET).unwrap();

    assert!(theirs.verify(BODY, &headers).is_ok());
    assert!(theirs.verify(b"{}", &headers).is_err());
}

#[test]
fn a_secret_has_24_to_64_bytes_and_one_spelling() {
    assert_eq!(format_secret(&secret()), SECRET);
    assert_eq!(parse_secret(&format_secret(&SigningSecret(vec![9; 64]))).unwrap().0, [9; 64]);
    assert_eq!(parse_secret(&format_secret(&SigningSecret(vec![9; 65]))), None);
    assert_eq!(parse_secret(&format_secret(&SigningSecret(vec![9; 23]))), None);
    for text in [
        "",
        "whsec_",
        "C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "WHSEC_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "whsec_C2FVsBQIhrscChlQIMV-b5sSYspob7oD",
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD ",
    ] {
        assert_eq!(parse_secret(text), None, "{text}");
    }
    assert_eq!(format!("{:?}", secret()), "SigningSecret(hidden)");
}

proptest! {
    #[test]
    fn reference_implementation_and_ours_agree(
        key in proptest::collection::vec(any::<u8>(), 24..=64),
        id in "[a-z]{1,4}_[0-9a-f]{1,32}",
        seconds in 0_i64..4_000_000_000,
        body in ".{0,200}",
    ) {
        let theirs = Webhook::from_bytes(key.clone()).unwrap();
        let ours = SigningSecret(key);

        let signature = theirs.sign(&id, seconds, body.as_bytes()).unwrap();

        prop_assert_eq!(&sign(std::slice::from_ref(&ours), &id, seconds, body.as_bytes()), &signature);
        let now = Timestamp::from_millis(seconds * 1000);
        prop_assert_eq!(
            verify(&ours, &id, &seconds.to_string(), &signature, body.as_bytes(), now),
            Ok(())
        );
    }
}
