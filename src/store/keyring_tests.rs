//! Sealing and opening, and the text of keys.

use super::{KEYS_MAX, Key, KeyError, KeyId, Keyring, SecretPlace};
use crate::domain::id::{AppId, ServiceId};

fn place(service: u8, app: u8, number: u64) -> SecretPlace {
    let (service, app) = (ServiceId::from_bytes([service; 16]), AppId::from_bytes([app; 16]));
    SecretPlace { service, app, number }
}

fn ring() -> Keyring {
    Keyring::new(vec![Key::random().unwrap()]).unwrap()
}

#[test]
fn what_is_sealed_opens_with_its_key_at_its_place_only() {
    let (ring, other) = (ring(), ring());
    let here = place(1, 2, 3);
    let sealed = ring.seal(here, b"a secret of 32 bytes, more or less").unwrap();
    let id = ring.newest();

    assert_eq!(ring.open(here, id, &sealed).unwrap(), b"a secret of 32 bytes, more or less");
    for elsewhere in [place(9, 2, 3), place(1, 9, 3), place(1, 2, 9)] {
        assert_eq!(ring.open(elsewhere, id, &sealed), Err(KeyError::Damaged(id)));
    }
    assert_eq!(other.open(here, id, &sealed), Err(KeyError::Unknown(id)));
}

#[test]
fn every_changed_bit_and_every_cut_is_noticed() {
    let ring = ring();
    let (here, id) = (place(1, 2, 3), ring.newest());
    let sealed = ring.seal(here, &[7; 32]).unwrap();
    assert_eq!(sealed.len(), 12 + 32 + 16);

    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(ring.open(here, id, &changed), Err(KeyError::Damaged(id)), "bit {bit}");
    }
    for length in 0..sealed.len() {
        assert_eq!(ring.open(here, id, &sealed[..length]), Err(KeyError::Damaged(id)));
    }
}

#[test]
fn the_same_secret_never_looks_the_same_twice() {
    let ring = ring();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1_000 {
        let sealed = ring.seal(place(1, 1, 1), &[7; 32]).unwrap();
        assert!(!sealed.windows(8).any(|part| part == [7; 8]));
        assert!(seen.insert(sealed[..12].to_vec()), "a nonce came twice");
    }
}

#[test]
fn a_ring_with_a_new_key_seals_with_it_and_opens_with_both() {
    let old = ring();
    let sealed = old.seal(place(1, 1, 1), b"old").unwrap();

    let both = Keyring::parse(&old.with_new().unwrap().reveal()).unwrap();

    assert_eq!(both.ids().count(), 2);
    assert_ne!(both.newest(), old.newest());
    assert_eq!(both.open(place(1, 1, 1), old.newest(), &sealed).unwrap(), b"old");
    let newest = both.only_newest().unwrap();
    assert_eq!(newest.ids().collect::<Vec<_>>(), [both.newest()]);
    let unknown = newest.open(place(1, 1, 1), old.newest(), &sealed);
    assert_eq!(unknown, Err(KeyError::Unknown(old.newest())));
}

#[test]
fn keys_are_read_from_lines_and_lists_and_from_nothing_else() {
    let (a, b) = (Key::random().unwrap(), Key::random().unwrap());
    let (first, second) = (a.reveal(), b.reveal());
    for text in [
        format!("{first},{second}"),
        format!(" {first} , {second} \n"),
        format!("# a note\n\nrollcall-key-1 {first}\nrollcall-key-1 {second}\n"),
    ] {
        let ring = Keyring::parse(&text).unwrap();
        assert_eq!(ring.ids().collect::<Vec<_>>(), [a.id(), b.id()], "{text}");
    }
    for (text, error) in [
        (String::new(), KeyError::Count),
        ("# only a note".to_owned(), KeyError::Count),
        (format!("{first},{first}"), KeyError::Repeated),
        (first[1..].to_owned(), KeyError::Malformed),
        (format!("{first}{second}"), KeyError::Malformed),
        (format!("rollcall-key-2 {first}"), KeyError::Malformed),
        ("AAAA".to_owned(), KeyError::Malformed),
        ("password".to_owned(), KeyError::Malformed),
    ] {
        assert_eq!(Keyring::parse(&text).unwrap_err(), error, "{text}");
    }
    let many: Vec<Key> = (0..=KEYS_MAX).map(|_| Key::random().unwrap()).collect();
    assert_eq!(Keyring::new(many).unwrap_err(), KeyError::Count);
}

#[test]
fn no_debug_form_shows_a_key() {
    let key = Key::random().unwrap();
    let text = key.reveal();
    let id = key.id().to_string();
    let alone = format!("{key:?}");
    let shown = format!("{alone} {:?}", Keyring::new(vec![key]).unwrap());

    assert!(!shown.contains(&text) && shown.contains(&id));
    assert_eq!(KeyId::from_bytes([0, 1, 0xab, 0xff]).to_string(), "0001abff");
}
