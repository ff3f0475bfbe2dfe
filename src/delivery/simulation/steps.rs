//! The steps of a story, and how a seed becomes one.
//!
//! A story is data: every choice is a parameter of a step, drawn beforehand. So it can be run again without the
//! dice, shrunk by leaving steps out, and pasted into `stories.rs`. A step that does not fit the moment (the end of
//! an attempt when none is in flight) does nothing; numbers are taken modulo what there is.

/// Steps of a story that is drawn from a seed.
const STEPS: usize = 400;

/// What the model receiver does with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// 2xx, unless it refuses the contact.
    Good,
    /// An error, and it has not taken the event.
    Fails,
    /// It takes the event, but no answer arrives.
    Lost,
    /// 429; so many seconds to wait, or zero for no usable time.
    Pause(u64),
    /// 410.
    Gone,
}

/// What becomes of a record in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Written, or refused because its generation is over.
    Written,
    /// The group failed, but reached the disk all the same.
    FailedWritten,
    /// The group failed.
    FailedUnwritten,
}

/// One step of a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// An event of this contact is committed, and the lane hears of it.
    Commit(u64),
    /// The same, but the signal is lost.
    CommitUnheard(u64),
    /// Many events at once, of so many contacts in turn.
    Burst { contacts: u64, events: u64 },
    /// An attempt in flight ends; whether the lane keeps the permit.
    Ends { nth: usize, answer: Answer, keep: bool },
    /// So many attempts end one after the other.
    EndsMany { count: usize, answer: Answer },
    /// A page of the log with at most so many events arrives.
    Page(usize),
    /// The writer has taken the record under way.
    Write(Fate),
    /// The lane hears what became of its record.
    Tell,
    /// Both at once, and nothing failed.
    Recorded,
    /// So many milliseconds pass.
    Wait(u64),
    /// Time passes until the lane wants to be woken.
    Wake,
    /// So often: minutes pass, and everything that was started fails.
    Outage { tries: u64, minutes: u64 },
    /// The wall clock is moved by hours.
    ClockJump(i64),
    /// The lane may have so many permits from now on.
    Permits(usize),
    /// Other lanes hold so much that this one may hold only this many.
    HeldMax(usize),
    /// Memory is short.
    Unload,
    /// The process dies and starts again. Whether a record under way was written, and which of the attempts in
    /// flight reached the receiver, as bits in turn.
    Crash { written: bool, received: u8 },
    /// The process begins to stop in order: nothing starts until the crash that ends it.
    Drain,
    /// The next process has this setting.
    InFlightMax(usize),
    /// The app subscribes, or changes its URL.
    Subscribe,
    /// The app unsubscribes.
    Unsubscribe,
    /// The app wants one event again, counted from the newest back.
    Redeliver(u64),
    /// The app wants so many of the newest events again.
    Replay(u64),
    /// The same, but the group failed and reached the disk all the same: nobody is told, and every lane is halted.
    ReplayFailed(u64),
    /// Events are removed for their age, all but so many of the newest.
    Prune(u64),
    /// The store recovered from a failure: every lane is halted, to be read anew.
    Reopen,
    /// The engine reads the row of a halted lane and starts it.
    Reload,
    /// The receiver refuses the events of a contact.
    Refuse(u64),
    /// It takes them again.
    Accept(u64),
    /// It refuses the events of a contact, even when all other faults have stopped.
    Poison(u64),
}

/// Random numbers of a story (`SplitMix64`): the same seed, the same story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }

    fn index(&mut self, sides: u64) -> usize {
        usize::try_from(self.roll(sides)).expect("the sides of dice are few")
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len() as u64)]
    }
}

/// How the receiver is for a while.
#[derive(Clone, Copy)]
struct Mood {
    /// Of a thousand attempts, so many get no 2xx.
    bad: u64,
    /// What those get.
    answers: &'static [Answer],
    /// How long attempts take: of a hundred chances to end one, so many are taken.
    ends: u64,
    /// The longest wait at a time in milliseconds; attempts older than 15 s time out.
    longest: u64,
}

const MOODS: [Mood; 8] = [
    // Fast and well.
    Mood { bad: 10, answers: &[Answer::Fails, Answer::Lost], ends: 100, longest: 3_000 },
    Mood { bad: 0, answers: &[], ends: 100, longest: 3_000 },
    // Slow.
    Mood { bad: 20, answers: &[Answer::Fails], ends: 30, longest: 3_000 },
    // Fails now and then.
    Mood { bad: 300, answers: &[Answer::Fails, Answer::Lost], ends: 90, longest: 5_000 },
    Mood { bad: 700, answers: &[Answer::Fails], ends: 90, longest: 60_000 },
    // Down.
    Mood { bad: 1_000, answers: &[Answer::Fails], ends: 90, longest: 200_000 },
    // Hangs.
    Mood { bad: 500, answers: &[Answer::Lost], ends: 5, longest: 20_000 },
    // Asks for pauses, some of them usable.
    Mood {
        bad: 300,
        answers: &[Answer::Pause(0), Answer::Pause(2), Answer::Pause(30), Answer::Fails],
        ends: 90,
        longest: 5_000,
    },
];

/// Draws the story of a seed.
pub(super) fn draw(seed: u64) -> Vec<Step> {
    Teller::new(seed).tell()
}

struct Teller {
    dice: Dice,
    contacts: u64,
    mood: Mood,
    large: bool,
    /// Of a hundred chances for a crash or a change, so many are taken.
    unrest: u64,
    steps: Vec<Step>,
}

impl Teller {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let large = dice.roll(60) == 0;
        let contacts = if large { 260 + dice.roll(200) } else { 1 + dice.roll(12) };
        let mood = dice.pick(&MOODS);
        let unrest = if large { 10 } else { dice.pick(&[3, 30, 100, 100]) };
        Self { dice, contacts, mood, large, unrest, steps: Vec::with_capacity(STEPS + 16) }
    }

    fn tell(mut self) -> Vec<Step> {
        let most = if self.large { 300 } else { self.dice.pick(&[1, 4, 8, 8, 32]) };
        self.steps.push(Step::InFlightMax(most));
        self.steps.push(Step::Permits(most));
        if self.dice.chance(30) {
            for contact in 0..self.contacts.min(12) {
                if self.dice.chance(25) {
                    let for_ever = self.dice.chance(40);
                    let step = if for_ever { Step::Poison(contact) } else { Step::Refuse(contact) };
                    self.steps.push(step);
                }
            }
        }
        while self.steps.len() < STEPS {
            self.more();
        }
        self.steps
    }

    fn more(&mut self) {
        match self.dice.roll(1_000) {
            0..=219 => self.commit(),
            220..=459 => self.ends(),
            460..=639 => self.steps.push(Step::Recorded),
            640..=659 => self.steps.push(Step::Write(Fate::Written)),
            660..=679 => self.steps.push(Step::Tell),
            680..=764 => {
                let most = self.dice.pick(&[1, 3, 512, 512, 512]);
                self.steps.push(Step::Page(most));
            }
            765..=829 => self.steps.push(Step::Wake),
            830..=894 => {
                let wait = self.dice.roll(self.mood.longest);
                self.steps.push(Step::Wait(wait));
            }
            895..=904 => self.steps.push(Step::Unload),
            905..=914 => {
                let fate = self.dice.pick(&[Fate::FailedWritten, Fate::FailedUnwritten]);
                self.steps.push(Step::Write(fate));
                if self.dice.chance(70) {
                    self.steps.push(Step::Tell);
                }
                if self.dice.chance(50) {
                    self.steps.push(Step::Reopen);
                }
            }
            915..=924 => {
                let most = self.dice.pick(&[0, 1, 3, 8, 32, 300]);
                self.steps.push(Step::Permits(most));
            }
            925..=929 => {
                let most = self.dice.pick(&[3, 64, 10_000]);
                self.steps.push(Step::HeldMax(most));
            }
            930..=943 => {
                self.mood = self.dice.pick(&MOODS);
            }
            _ => self.rare(),
        }
    }

    fn rare(&mut self) {
        if !self.dice.chance(self.unrest) {
            return;
        }
        match self.dice.roll(56) {
            0..=9 => self.crash(),
            10..=19 => self.change(Step::Subscribe),
            20..=22 => {
                self.change(Step::Unsubscribe);
                if self.dice.chance(70) {
                    self.change(Step::Subscribe);
                }
            }
            23..=28 => {
                let event = self.dice.roll(1_000);
                self.change(Step::Redeliver(event));
            }
            29..=32 => {
                let after = self.dice.roll(1_000);
                let failed = self.dice.chance(15);
                self.change(if failed { Step::ReplayFailed(after) } else { Step::Replay(after) });
            }
            33..=34 => {
                let last = self.dice.roll(1_000);
                self.change(Step::Prune(last));
            }
            35..=38 => self.change(Step::Reopen),
            39..=43 => self.steps.push(Step::Reload),
            44..=45 => {
                let hours = [-200, -24, -1, 1, 24, 200];
                let hours = self.dice.pick(&hours);
                self.steps.push(Step::ClockJump(hours));
                if self.dice.chance(70) {
                    self.crash();
                }
            }
            46 => self.outage(),
            47..=48 => {
                self.steps.push(Step::Drain);
                for _ in 0..self.dice.roll(12) {
                    self.more();
                }
                self.crash();
            }
            49 => {
                self.steps.push(Step::Ends { nth: 0, answer: Answer::Gone, keep: true });
                if self.dice.chance(70) {
                    self.steps.push(Step::Recorded);
                    self.steps.push(Step::Wait(1_000));
                    self.change(Step::Subscribe);
                }
            }
            50..=52 => {
                let contact = self.dice.roll(self.contacts);
                self.steps.push(Step::Refuse(contact));
            }
            _ => {
                let contact = self.dice.roll(self.contacts);
                self.steps.push(Step::Accept(contact));
            }
        }
    }

    fn commit(&mut self) {
        if self.large && self.dice.chance(5) {
            let events = 50 + self.dice.roll(600);
            self.steps.push(Step::Burst { contacts: self.contacts, events });
            return;
        }
        let contact = self.dice.roll(self.contacts);
        let unheard = self.dice.chance(10);
        self.steps.push(if unheard { Step::CommitUnheard(contact) } else { Step::Commit(contact) });
    }

    fn answer(&mut self) -> Answer {
        if self.dice.roll(1_000) < self.mood.bad {
            self.dice.pick(self.mood.answers)
        } else {
            Answer::Good
        }
    }

    fn ends(&mut self) {
        if !self.dice.chance(self.mood.ends) {
            return;
        }
        let answer = self.answer();
        if self.large && self.dice.chance(30) {
            let count = self.dice.index(600);
            self.steps.push(Step::EndsMany { count, answer });
            return;
        }
        let nth = self.dice.index(8);
        let keep = self.dice.chance(80);
        self.steps.push(Step::Ends { nth, answer, keep });
    }

    fn crash(&mut self) {
        let written = self.dice.chance(50);
        let received = self.dice.pick(&[0, 255, 1, 85, 6]);
        self.steps.push(Step::Crash { written, received });
    }

    /// A change of the stored subscription; the engine may read its row at once or later.
    fn change(&mut self, step: Step) {
        self.steps.push(step);
        if self.dice.chance(60) {
            self.steps.push(Step::Reload);
        }
    }

    fn outage(&mut self) {
        let step = match self.dice.roll(20) {
            // Long enough to be given up.
            0 => Step::Outage { tries: 110, minutes: 75 },
            1..=3 => Step::Outage { tries: 24, minutes: 60 },
            _ => Step::Outage { tries: 1 + self.dice.roll(12), minutes: 1 + self.dice.roll(10) },
        };
        self.steps.push(step);
    }
}
