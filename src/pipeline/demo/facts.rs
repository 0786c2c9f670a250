//! The closed world: kinds of facts, their facts, and the ways to ask for and to state one.
//!
//! In a template `{s}` stands for the subject, `{v}` for the value and `{n}` for the kind's noun
//! phrase with the subject in it. Questions are written as they start a sentence, statements as
//! they go on after a comma; [`capital`] turns the one into the other. Within a kind every value
//! belongs to exactly one fact, so a value is right as often as it is wrong and says nothing alone.

/// Facts that are asked for and stated alike.
pub(super) struct Kind {
    /// The noun phrase that questions ask for, such as "the colour of {s}".
    noun: &'static str,
    questions: [&'static str; 4],
    statement: &'static str,
    /// Pairs of a subject and its value.
    facts: &'static [(&'static str, &'static str)],
}

/// One fact: a subject, the right value, and the kind whose other values are wrong.
#[derive(Clone, Copy)]
pub(super) struct Fact {
    kind: &'static Kind,
    pub(super) subject: &'static str,
    pub(super) value: &'static str,
}

/// Ways to ask for a fact.
pub(super) const QUESTIONS: usize = ANY_QUESTIONS.len() + 4;

const ANY_QUESTIONS: [&str; 8] = [
    "What is {n}?",
    "Tell me {n}.",
    "Do you know {n}?",
    "Can you tell me {n}?",
    "I forgot {n}. What is it?",
    "My son asked me about {n}.",
    "I want to know {n}.",
    "What would you say is {n}?",
];

const ANY_STATEMENTS: [&str; 3] = ["{n} is {v}.", "the answer is {v}.", "that would be {v}."];

static KINDS: [Kind; 8] = [
    Kind {
        noun: "the colour of {s}",
        questions: [
            "What colour is {s}?",
            "Which colour does {s} have?",
            "If I paint {s}, which colour do I need?",
            "{s} has which colour?",
        ],
        statement: "{s} is {v}.",
        facts: &[
            ("the sky", "blue"),
            ("grass", "green"),
            ("snow", "white"),
            ("coal", "black"),
            ("a tomato", "red"),
            ("a banana", "yellow"),
            ("a carrot", "orange"),
            ("chocolate", "brown"),
            ("a pig", "pink"),
            ("an elephant", "grey"),
        ],
    },
    Kind {
        noun: "the sound of {s}",
        questions: [
            "What does {s} say?",
            "Which sound does {s} make?",
            "What do you hear from {s}?",
            "If I meet {s}, what will it say?",
        ],
        statement: "{s} says {v}.",
        facts: &[
            ("a dog", "woof"),
            ("a cat", "meow"),
            ("a cow", "moo"),
            ("a duck", "quack"),
            ("a sheep", "baa"),
            ("a frog", "croak"),
            ("a snake", "hiss"),
            ("an owl", "hoot"),
            ("a lion", "roar"),
        ],
    },
    Kind {
        noun: "the capital of {s}",
        questions: [
            "Which city is the capital of {s}?",
            "Name the capital city of {s}.",
            "I am going to {s}. What is the capital?",
            "What do they call the capital of {s}?",
        ],
        statement: "{s} has {v} as its capital.",
        facts: &[
            ("France", "Paris"),
            ("Italy", "Rome"),
            ("Spain", "Madrid"),
            ("Japan", "Tokyo"),
            ("Egypt", "Cairo"),
            ("Greece", "Athens"),
            ("Norway", "Oslo"),
            ("Peru", "Lima"),
            ("Cuba", "Havana"),
            ("Kenya", "Nairobi"),
        ],
    },
    Kind {
        noun: "the opposite of {s}",
        questions: [
            "Which word means the opposite of {s}?",
            "What do you call it if it is not {s}?",
            "If it is not {s}, what is it?",
            "Name the opposite of {s}.",
        ],
        statement: "if it is not {s}, it is {v}.",
        facts: &[
            ("hot", "cold"),
            ("big", "small"),
            ("fast", "slow"),
            ("wet", "dry"),
            ("hard", "soft"),
            ("early", "late"),
            ("old", "new"),
            ("full", "empty"),
            ("loud", "quiet"),
            ("rich", "poor"),
        ],
    },
    Kind {
        noun: "the day after {s}",
        questions: [
            "Which day comes after {s}?",
            "If today is {s}, what is tomorrow?",
            "Today is {s}. Which day is tomorrow?",
            "What day will it be after {s}?",
        ],
        statement: "{v} comes after {s}.",
        facts: &[
            ("Monday", "Tuesday"),
            ("Tuesday", "Wednesday"),
            ("Wednesday", "Thursday"),
            ("Thursday", "Friday"),
            ("Friday", "Saturday"),
            ("Saturday", "Sunday"),
            ("Sunday", "Monday"),
        ],
    },
    Kind {
        noun: "the sum of {s}",
        questions: [
            "What do you get if you add {s}?",
            "If I add {s}, what will I get?",
            "How much do {s} make?",
            "I have to add {s}. What do I get?",
        ],
        statement: "{s} make {v}.",
        facts: &[
            ("one and one", "two"),
            ("one and two", "three"),
            ("two and two", "four"),
            ("two and three", "five"),
            ("three and three", "six"),
            ("three and four", "seven"),
            ("four and four", "eight"),
            ("four and five", "nine"),
            ("five and five", "ten"),
        ],
    },
    Kind {
        noun: "the home of {s}",
        questions: [
            "Where does {s} live?",
            "Where can I find {s}?",
            "Where would you look for {s}?",
            "If I want to see {s}, where do I look?",
        ],
        statement: "{s} lives in {v}.",
        facts: &[
            ("a bee", "a hive"),
            ("a bird", "a nest"),
            ("a fish", "the sea"),
            ("a camel", "the desert"),
            ("a bear", "a cave"),
            ("a horse", "a stable"),
            ("a spider", "a web"),
            ("a king", "a castle"),
            ("a monkey", "the jungle"),
        ],
    },
    Kind {
        noun: "the material of {s}",
        questions: [
            "What is {s} made of?",
            "What do I need to make {s}?",
            "What do people make {s} from?",
            "If I make {s}, what do I need?",
        ],
        statement: "{s} is made of {v}.",
        facts: &[
            ("a window", "glass"),
            ("a table", "wood"),
            ("a nail", "iron"),
            ("a sweater", "wool"),
            ("a book", "paper"),
            ("a candle", "wax"),
            ("a tyre", "rubber"),
            ("a shirt", "cotton"),
            ("a shoe", "leather"),
        ],
    },
];

/// All facts, in a fixed order.
pub(super) fn facts() -> impl Iterator<Item = Fact> {
    KINDS.iter().flat_map(|kind| {
        kind.facts.iter().map(move |&(subject, value)| Fact { kind, subject, value })
    })
}

impl Fact {
    /// Question number `i` of [`QUESTIONS`], with a capital.
    pub(super) fn question(&self, i: usize) -> String {
        let own = i.checked_sub(ANY_QUESTIONS.len());
        let template = own.map_or_else(|| ANY_QUESTIONS[i], |own| self.kind.questions[own]);
        capital(&self.fill(template, ""))
    }

    /// All sentences that state `value` of this fact, without a capital.
    pub(super) fn statements(&self, value: &str) -> Vec<String> {
        let own = std::iter::once(self.kind.statement);
        ANY_STATEMENTS.into_iter().chain(own).map(|t| self.fill(t, value)).collect()
    }

    /// The values of this kind that are wrong for this fact.
    pub(super) fn wrong_values(&self) -> Vec<&'static str> {
        self.kind.facts.iter().map(|f| f.1).filter(|v| *v != self.value).collect()
    }

    fn fill(&self, template: &str, value: &str) -> String {
        template.replace("{n}", self.kind.noun).replace("{s}", self.subject).replace("{v}", value)
    }
}

/// `text` with a capital first letter.
pub(super) fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |c| c.to_ascii_uppercase().to_string() + rest.as_str())
}
