//! A hint and its text in a NOTIFY: words with spaces between them, the first of which names the sender.
//!
//! | Word | Meaning |
//! |---|---|
//! | `h<service>:<head>` | this log has grown so far |
//! | `s<service>/<app>` | this subscription changed, or its secrets |
//! | `a<service>/<app>` | the same, and it wants events again |
//! | `c<shard>:<times>` | the count of this shard was counted up so often |
//! | `t<times>` | the count of services, apps and tokens likewise |
//! | `x<service>` | this service was hidden |
//! | `*` | there was more than fits |
//!
//! What cannot be read is passed over: a newer version may know other words.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::domain::id::{AppId, ServiceId};
use crate::domain::shard::Shard;
use crate::store::Commit;

/// Most bytes of one text; PostgreSQL takes 7,999.
const BYTES_MAX: usize = 7_900;
/// Most texts of one hint: about 1,500 services. More is found by comparing.
const TEXTS_MAX: usize = 10;

/// What a node tells others of its commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) heads: BTreeMap<ServiceId, u64>,
    /// Each with whether it wants events again.
    pub(super) subscriptions: BTreeMap<(ServiceId, AppId), bool>,
    /// How often the count of a shard was counted up.
    pub(super) counted: BTreeMap<Shard, u32>,
    pub(super) tenancy: u32,
    pub(super) hidden: BTreeSet<ServiceId>,
    /// Whether there was more than was told.
    pub(super) incomplete: bool,
}

impl Hint {
    /// What there is to tell of a commit of this node.
    pub(super) fn of(commit: &Commit) -> Self {
        let mut hint = Self::default();
        for event in &commit.events {
            let head = hint.heads.entry(event.service).or_default();
            *head = event.sequence.max(*head);
        }
        // Without a count nobody else needs to hear: the owner of the shard itself disabled it.
        if !commit.counted.is_empty() {
            let secrets = commit.secrets.iter().map(|changed| (changed.service, changed.app));
            for key in commit.subscriptions.iter().copied().chain(secrets) {
                hint.subscriptions.insert(key, commit.again.contains(&key));
            }
        }
        hint.counted = commit.counted.iter().map(|shard| (*shard, 1)).collect();
        // Where everything is to be read anew nothing was counted.
        hint.tenancy = u32::from(commit.tenancy && !commit.reopened);
        hint.hidden = commit.hidden.iter().copied().collect();
        hint
    }

    /// Adds what happened after it.
    pub(super) fn add(&mut self, later: Self) {
        for (service, head) in later.heads {
            let before = self.heads.entry(service).or_default();
            *before = head.max(*before);
        }
        for (key, again) in later.subscriptions {
            *self.subscriptions.entry(key).or_default() |= again;
        }
        for (shard, times) in later.counted {
            *self.counted.entry(shard).or_default() += times;
        }
        self.tenancy += later.tenancy;
        self.hidden.extend(later.hidden);
        self.incomplete |= later.incomplete;
    }

    fn words(&self) -> impl Iterator<Item = String> {
        let heads = self.heads.iter().map(|(service, head)| format!("h{}:{head}", hex(*service)));
        let subscriptions = self.subscriptions.iter().map(|((service, app), again)| {
            let word = if *again { 'a' } else { 's' };
            format!("{word}{}/{}", hex(*service), app.uuid().simple())
        });
        let counted = self.counted.iter().map(|(shard, times)| format!("c{shard}:{times}"));
        let tenancy = (self.tenancy > 0).then(|| format!("t{}", self.tenancy));
        let hidden = self.hidden.iter().map(|service| format!("x{}", hex(*service)));
        // The few and urgent ones first.
        tenancy.into_iter().chain(counted).chain(subscriptions).chain(hidden).chain(heads)
    }
}

fn hex(service: ServiceId) -> uuid::fmt::Simple {
    service.uuid().simple()
}

/// The texts of a hint.
pub(super) fn write(sender: Uuid, hint: &Hint) -> Vec<String> {
    let begin = || sender.simple().to_string();
    let mut texts = Vec::new();
    let mut text = begin();
    for word in hint.words() {
        if text.len() + 1 + word.len() > BYTES_MAX {
            if texts.len() + 1 == TEXTS_MAX {
                text = begin() + " *";
                break;
            }
            texts.push(std::mem::replace(&mut text, begin()));
        }
        text.push(' ');
        text.push_str(&word);
    }
    texts.push(text);
    texts
}

/// Adds what a text says to a hint, unless it is one of our own.
pub(super) fn read(sender: Uuid, text: &str, hint: &mut Hint) {
    let mut words = text.split(' ');
    if words.next().and_then(|word| word.parse().ok()) == Some(sender) {
        return;
    }
    for word in words {
        if let Some(told) = read_word(word) {
            hint.add(told);
        }
    }
}

fn read_word(word: &str) -> Option<Hint> {
    let mut hint = Hint::default();
    let mut chars = word.chars();
    let kind = chars.next()?;
    let rest = chars.as_str();
    let service = |text: &str| text.parse().ok().map(ServiceId::from_uuid);
    match kind {
        'h' => {
            let (of, head) = rest.split_once(':')?;
            hint.heads.insert(service(of)?, head.parse().ok()?);
        }
        's' | 'a' => {
            let (of, app) = rest.split_once('/')?;
            let app = AppId::from_uuid(app.parse().ok()?);
            hint.subscriptions.insert((service(of)?, app), kind == 'a');
        }
        'c' => {
            let (shard, times) = rest.split_once(':')?;
            hint.counted.insert(Shard::from_number(shard.parse().ok()?)?, times.parse().ok()?);
        }
        't' => hint.tenancy = rest.parse().ok()?,
        'x' => {
            hint.hidden.insert(service(rest)?);
        }
        '*' => hint.incomplete = true,
        _ => return None,
    }
    Some(hint)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{BYTES_MAX, Hint, TEXTS_MAX, read, write};
    use crate::domain::id::{AppId, ServiceId};
    use crate::domain::shard::Shard;

    fn service(number: u128) -> ServiceId {
        ServiceId::from_uuid(Uuid::from_u128(number))
    }

    fn app(number: u128) -> AppId {
        AppId::from_uuid(Uuid::from_u128(number))
    }

    fn read_all(texts: &[String]) -> Hint {
        let mut hint = Hint::default();
        texts.iter().for_each(|text| read(Uuid::nil(), text, &mut hint));
        hint
    }

    #[test]
    fn a_hint_is_read_back_and_not_by_its_sender() {
        let shard = Shard::from_number(63).unwrap();
        let hint = Hint {
            heads: [(service(1), 7), (service(u128::MAX), u64::MAX)].into(),
            subscriptions: [((service(1), app(2)), true), ((service(3), app(4)), false)].into(),
            counted: [(shard, 2)].into(),
            tenancy: 3,
            hidden: [service(5)].into(),
            incomplete: false,
        };

        let texts = write(Uuid::from_u128(9), &hint);

        assert_eq!((texts.len(), read_all(&texts)), (1, hint));
        let mut own = Hint::default();
        read(Uuid::from_u128(9), &texts[0], &mut own);
        assert_eq!(own, Hint::default());
    }

    #[test]
    fn a_long_hint_has_several_texts_and_one_that_is_too_long_says_so() {
        let heads = |count: u128| (0..count).map(|n| (service(n), 1)).collect();
        let hint = Hint { heads: heads(1_000), ..Hint::default() };
        let texts = write(Uuid::from_u128(9), &hint);
        assert!(texts.len() > 1 && texts.iter().all(|text| text.len() <= BYTES_MAX));
        assert_eq!(read_all(&texts), hint);

        let texts = write(Uuid::from_u128(9), &Hint { heads: heads(10_000), ..Hint::default() });

        assert_eq!(texts.len(), TEXTS_MAX);
        assert!(read_all(&texts).incomplete);
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let mut hint = Hint::default();
        for text in
            ["", "x", "no-id h1", "- c64:1 c-1:1 h:1 s/ t-1 t z1 x12 \u{fc}", "- c1:99999999999"]
        {
            read(Uuid::nil(), text, &mut hint);
        }
        assert_eq!(hint, Hint::default());
        read(Uuid::nil(), "- t1 what c5:2", &mut hint);
        assert_eq!((hint.tenancy, hint.counted.len()), (1, 1));
    }
}
