//! Every fuzz target for about two seconds: its seeds, then variations of them by a seeded mutator, in debug builds too.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{TARGETS, Target, find_target};

/// Longest run of one target beyond its seeds. Longer finds more here; `make fuzz` is for that.
const TIME_MAX: Duration = Duration::from_secs(2);
/// Most variations of one target.
const VARIATIONS_MAX: usize = 50_000;
/// Fewest, whatever the machine: a run with fewer has tried nothing.
const VARIATIONS_MIN: usize = 200;
/// Longest input: as in `fuzz/run.sh`.
const INPUT_BYTES_MAX: usize = 4096;
/// The first state of the generator; any but zero will do.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// Bytes on which parsers decide, and values beyond what numbers hold.
const TOKENS: [&[u8]; 48] = [
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b" ",
    b"\t",
    b":",
    b": ",
    b",",
    b";",
    b"=",
    b"\"",
    b"\\",
    b"/",
    b"//",
    b"?",
    b"#",
    b"@",
    b"[",
    b"]",
    b"{",
    b"}",
    b"{\"a\":1,\"a\":1}",
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"18446744073709551616",
    b"-1",
    b"0x7f",
    b"0177",
    b"127.0.0.1",
    b"[::1]",
    b"::ffff:127.0.0.1",
    b"localhost",
    b"\xFF",
    b"\xFE",
    b"\xFD",
    b"\xFC",
    b"\xC3\x28",
    b"\xE2\x80\xAE",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: a\r\n",
    b"0\r\n\r\n",
    b"%00",
    b"null",
];

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name)
}

/// The seeds of a target, in the order of their names.
fn read_seeds(name: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Random numbers that are the same in every run (xorshift64*).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let random = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        usize::try_from(random).unwrap() % end.max(1)
    }

    /// A piece of these bytes, short more often than long.
    fn piece<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.below(bytes.len() + 1);
        let longest = 1 << self.below(10);
        let length = self.below(longest).min(bytes.len() - start);
        &bytes[start..start + length]
    }

    fn vary(&mut self, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(8) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = u8::try_from(self.below(256)).unwrap(),
            2 => {
                let length = self.piece(&input[at..]).len();
                drop(input.drain(at..at + length));
            }
            3 => {
                let piece = self.piece(input).to_vec();
                drop(input.splice(at..at, piece));
            }
            4 => {
                let other = &seeds[self.below(seeds.len())];
                let piece = self.piece(other).to_vec();
                drop(input.splice(at..at, piece));
            }
            5 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => input.truncate(at),
            _ => {
                let token = TOKENS[self.below(TOKENS.len())];
                drop(input.splice(at..at, token.iter().copied()));
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
}

/// Says which input it was when a property does not hold.
fn run(target: &Target, input: &[u8]) {
    let checked = std::panic::catch_unwind(|| (target.check)(input));
    assert!(checked.is_ok(), "{}: input b\"{}\"", target.name, input.escape_ascii());
}

#[expect(clippy::print_stdout, reason = "how much was tried is what the run is judged by")]
fn say(line: &str) {
    println!("{line}");
}

fn check(name: &str) {
    let target = find_target(name).unwrap();
    let seeds = read_seeds(name);
    assert!(!seeds.is_empty(), "{name} has no seeds");
    seeds.iter().for_each(|seed| run(target, seed));
    let started = Instant::now();
    let mut chance = Chance(SEED);
    let mut variations = 0;
    while variations < VARIATIONS_MAX
        && (variations < VARIATIONS_MIN || started.elapsed() < TIME_MAX)
    {
        let mut input = seeds[chance.below(seeds.len())].clone();
        for _ in 0..=chance.below(4) {
            chance.vary(&mut input, &seeds);
        }
        run(target, &input);
        variations += 1;
    }
    let took = started.elapsed().as_millis();
    say(&format!(
        "fuzz target {name}: {} seeds, {variations} variations in {took} ms",
        seeds.len()
    ));
}

macro_rules! short_runs {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { check($name); })*

        #[test]
        fn every_target_has_seeds_and_a_short_run() {
            let named: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(named, [$($name),*], "each target needs its line among the short runs");
            // `make fuzz` runs a target for each folder of seeds.
            let mut folders: Vec<String> = fs::read_dir(folder("")).unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            folders.sort();
            assert_eq!(folders, named, "each target needs its folder of seeds, and no other is there");
        }
    };
}

short_runs! {
    bytes_on_a_connection: "connection",
    bodies_with_contacts: "contact",
    heads_read_along: "heads",
    other_json: "json",
    requests_to_a_developers_receiver: "notification",
    answers_of_receivers: "receiver",
    targets_and_headers: "request",
    urls_and_what_their_names_stand_for: "url",
}

#[test]
fn a_property_that_does_not_hold_is_told_with_its_input() {
    let broken =
        Target { name: "broken", check: |bytes| assert!(!bytes.ends_with(b"!"), "as planted") };

    let told = std::panic::catch_unwind(|| run(&broken, b"a\n!"));

    let told = told.unwrap_err();
    assert_eq!(told.downcast_ref::<String>().unwrap(), "broken: input b\"a\\n!\"");
}
