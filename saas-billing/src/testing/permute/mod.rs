//! The permutation kit: any order of events, with any repetition, cut anywhere, must end in one state.
//!
//! Owns the courses that a history is put through ([`Permutations`]), the comparison of the digests, and the search for the
//! shortest course that still differs ([`Divergence`]). Leaves to a [`Subject`] how events are applied and what a digest is:
//! it knows nothing of Stripe, nor of this crate's tables.
//!
//! ```
//! use std::collections::BTreeMap;
//! use saas_billing::testing::{Course, Permutations, Subject, SubjectError};
//! use serde_json::{Value, json};
//!
//! /// A handler that believes whatever came last.
//! #[derive(Debug)]
//! struct LastWins(Vec<(&'static str, &'static str)>);
//!
//! #[async_trait::async_trait]
//! impl Subject for LastWins {
//!     fn events(&self) -> Vec<String> {
//!         self.0.iter().map(|(id, status)| format!("{id} is {status}")).collect()
//!     }
//!     async fn run(&self, courses: &[Course]) -> Result<Vec<Value>, SubjectError> {
//!         Ok(courses
//!             .iter()
//!             .map(|course| json!(course.steps().iter().map(|step| self.0[step.event]).collect::<BTreeMap<_, _>>()))
//!             .collect())
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let handler = LastWins(vec![("cus_1", "new"), ("sub_1", "active"), ("sub_1", "canceled")]);
//! let found = Permutations::seeded(42).check(&handler).await.unwrap_err();
//! let report = found.to_string();
//! assert!(report.contains("sub_1 is canceled, sub_1 is active"), "{report}");
//! assert!(report.contains(r#"/sub_1: "canceled" in the order of events, "active" in this"#), "{report}");
//! # });
//! ```

mod course;
mod shrink;

use std::{error::Error, fmt};

use async_trait::async_trait;
use serde_json::Value;

pub use course::{Course, Permutations, Step, orders};

/// Why a subject could not carry out a course.
pub type SubjectError = Box<dyn Error + Send + Sync>;

/// What is put to the test.
#[async_trait]
pub trait Subject: fmt::Debug + Send + Sync {
    /// What each event of the history is to be called, in the order in which they happened.
    fn events(&self) -> Vec<String>;

    /// Carries out courses, each from the beginning and in a world of its own, and answers with a digest of each: all that
    /// must not depend on the order. What differs is reported by its path, so objects read better than text.
    ///
    /// Several come at once, so that a subject on a database can take turns: a tenant each costs less than a database each.
    async fn run(&self, courses: &[Course]) -> Result<Vec<Value>, SubjectError>;
}

/// What a check went through.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreed {
    /// Courses carried out.
    pub courses: usize,
    /// The digest of all of them.
    pub digest: Value,
}

/// A place at which two digests differ.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// As a JSON pointer.
    pub path: String,
    /// In the order in which the events happened; `None`: not there.
    pub expected: Option<Value>,
    /// In the course.
    pub found: Option<Value>,
}

/// Differences that are listed; the first say enough.
const MAX_DIFFERENCES: usize = 20;

/// The shortest course that was found to end elsewhere than the order in which its events happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// What the courses were drawn by: the same seed finds it again.
    pub seed: u64,
    /// How many courses ended alike before it.
    pub agreed: usize,
    /// Its events, in the order in which they happened.
    pub events: Vec<String>,
    /// Its steps, in words.
    pub course: Vec<String>,
    /// What differs; the first twenty places.
    pub differences: Vec<Difference>,
}

/// Why a check has not passed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unproven {
    /// Two courses end in two states.
    Diverged(Box<Divergence>),
    /// The subject could not carry out a course.
    Failed(SubjectError),
    /// The subject did not answer with one digest per course.
    Miscounted {
        /// How many it was given.
        courses: usize,
        /// How many it answered with.
        digests: usize,
    },
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: after {} courses that ended alike, this one does not:", self.seed, self.agreed)?;
        writeln!(f, "  happened:  {}", self.events.join(", "))?;
        writeln!(f, "  delivered: {}", self.course.join(", "))?;
        let side = |side: &Option<Value>| side.as_ref().map_or_else(|| "nothing".to_owned(), Value::to_string);
        for one in &self.differences {
            let (expected, found) = (side(&one.expected), side(&one.found));
            writeln!(f, "  {}: {expected} in the order of events, {found} in this", one.path)?;
        }
        Ok(())
    }
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diverged(divergence) => divergence.fmt(f),
            Self::Failed(_) => f.write_str("the subject could not carry out a course"),
            Self::Miscounted { courses, digests } => {
                write!(f, "{courses} courses were answered with {digests} digests")
            }
        }
    }
}

impl Error for Unproven {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(why) => Some(why.as_ref()),
            Self::Diverged(_) | Self::Miscounted { .. } => None,
        }
    }
}

impl Permutations {
    /// Puts a subject through its courses until one ends elsewhere.
    ///
    /// # Errors
    /// [`Unproven::Diverged`] with the shortest course that was found; else what the subject failed with.
    pub async fn check(&self, subject: &dyn Subject) -> Result<Agreed, Unproven> {
        let names = subject.events();
        let natural = Course::natural(0..names.len());
        let expected = one_each(subject, std::slice::from_ref(&natural)).await?.remove(0);
        let mut agreed = 1;
        let mut courses = self.courses(names.len());
        loop {
            let batch: Vec<Course> = courses.by_ref().take(self.batch).collect();
            if batch.is_empty() {
                return Ok(Agreed { courses: agreed, digest: expected });
            }
            let digests = one_each(subject, &batch).await?;
            let Some(at) = digests.iter().position(|digest| *digest != expected) else {
                agreed += batch.len();
                continue;
            };
            let found = shrink::shortest(subject, (&natural, &expected), (&batch[at], &digests[at])).await?;
            return Err(Unproven::Diverged(Box::new(Divergence {
                seed: self.seed,
                agreed: agreed + at,
                events: found.kept.iter().map(|event| names[*event].clone()).collect(),
                course: found.course.steps().iter().map(|step| step.in_words(&names[step.event])).collect(),
                differences: differences(&found.expected, &found.digest),
            })));
        }
    }
}

async fn one_each(subject: &dyn Subject, courses: &[Course]) -> Result<Vec<Value>, Unproven> {
    let digests = subject.run(courses).await.map_err(Unproven::Failed)?;
    if digests.len() == courses.len() {
        return Ok(digests);
    }
    Err(Unproven::Miscounted { courses: courses.len(), digests: digests.len() })
}

fn differences(expected: &Value, found: &Value) -> Vec<Difference> {
    let mut differences = Vec::new();
    look(String::new(), Some(expected), Some(found), &mut differences);
    differences.truncate(MAX_DIFFERENCES);
    differences
}

fn look(path: String, expected: Option<&Value>, found: Option<&Value>, into: &mut Vec<Difference>) {
    match (expected, found) {
        _ if expected == found || into.len() > MAX_DIFFERENCES => {}
        (Some(Value::Object(expected)), Some(Value::Object(found))) => {
            let only = found.keys().filter(|key| !expected.contains_key(*key));
            for key in expected.keys().chain(only) {
                look(format!("{path}/{key}"), expected.get(key), found.get(key), into);
            }
        }
        (Some(Value::Array(expected)), Some(Value::Array(found))) => {
            for n in 0..expected.len().max(found.len()) {
                look(format!("{path}/{n}"), expected.get(n), found.get(n), into);
            }
        }
        _ => into.push(Difference { path, expected: expected.cloned(), found: found.cloned() }),
    }
}
