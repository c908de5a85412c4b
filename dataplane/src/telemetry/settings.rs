//! What an application lets clients change: a name, and a published table that is made of a text.
//!
//! The application says how a text becomes a table; a text that is wrong becomes none, and nothing changes. The thread that serves clients makes the table
//! and publishes it. No worker waits for that, nor learns of it before its next turn.
#![forbid(unsafe_code)]

use super::protocol::{ApplicationSetting, SettingStatus};
use crate::error::Error;
use percpu::qsbr::Published;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a client waits for workers that do not let go of old tables.
const PATIENCE: Duration = Duration::from_millis(100);

type Change = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The settings of a run, in the order in which they were offered.
#[derive(Default)]
pub(crate) struct Settings(Vec<Offered>);

struct Offered {
    name: &'static str,
    /// What it takes, in words.
    takes: &'static str,
    /// The text that is in force.
    text: Mutex<String>,
    change: Change,
}

impl Settings {
    /// From now on clients can change this table. `text` is what it was made of.
    pub(crate) fn offer<T: Send + Sync + 'static>(
        &mut self,
        (name, takes): (&'static str, &'static str),
        text: &str,
        table: Published<T>,
        make: impl Fn(&str) -> Result<T, Error> + Send + Sync + 'static,
    ) {
        let change = move |text: &str| {
            let new = make(text).map_err(|error| error.to_string())?;
            table.publish(new, PATIENCE).map_err(|refused| refused.to_string())
        };
        // Its name is how it is found.
        self.0.retain(|known| known.name != name);
        self.0.push(Offered { name, takes, text: Mutex::new(text.to_owned()), change: Box::new(change) });
    }

    /// Changes one; says what it is now, or why it is what it was.
    pub(super) fn change(&self, wanted: &ApplicationSetting) -> Result<String, String> {
        let ApplicationSetting { name, text } = wanted;
        let Some(setting) = self.0.iter().find(|setting| setting.name == name) else {
            let names: Vec<&str> = self.0.iter().map(|setting| setting.name).collect();
            let known = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(format!("this application has no setting {name:?}: those that it has are {known}"));
        };
        // It goes to a log and to other clients' terminals.
        if text.contains(char::is_control) {
            return Err(format!("{name}: its text is one line, without control characters"));
        }
        // The application's own code: what is wrong with it is not to end the service.
        let changed = catch_unwind(AssertUnwindSafe(|| (setting.change)(text)));
        changed.unwrap_or_else(|_| {
            Err(format!("{name}: the application panicked over {text:?}; please report this as a bug"))
        })?;
        text.clone_into(&mut setting.text.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(format!("{name} is set to {text}"))
    }

    /// All of them, as they are now.
    pub(super) fn status(&self) -> Vec<SettingStatus> {
        let status = |setting: &Offered| SettingStatus {
            name: setting.name.to_owned(),
            text: setting.text.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            takes: setting.takes.to_owned(),
        };
        self.0.iter().map(status).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;
    use percpu::qsbr::{Domain, MOST_RETIRED};
    use std::sync::Arc;

    /// The setting `number`, which takes numbers below 100.
    pub(in crate::telemetry) fn settings(domain: &Arc<Domain>) -> (Settings, Published<u8>) {
        let (published, mut settings) = (Published::new(domain, 7), Settings::default());
        let make = |text: &str| match text.parse() {
            Ok(13) => panic!("deliberate"),
            Ok(number) if number < 100 => Ok(number),
            _ => Err(Error::Configuration(format!("\"{text}\" is no number below 100"))),
        };
        settings.offer(("number", "a number below 100"), "7", published.clone(), make);
        (settings, published)
    }

    fn set(settings: &Settings, name: &str, text: &str) -> Result<String, String> {
        settings.change(&ApplicationSetting { name: name.into(), text: text.into() })
    }

    #[test]
    fn what_is_right_is_published_and_what_is_wrong_changes_nothing() {
        let domain = Domain::new();
        let (settings, published) = settings(&domain);
        let (table, mut reader) = (published.shared(), domain.reader(0));
        reader.begin();
        let mut now = |text: &str| {
            reader.quiescent();
            assert_eq!(settings.status()[0].text, text);
            *table.get(&reader)
        };
        assert_eq!(now("7"), 7);
        assert_eq!(set(&settings, "number", "42"), Ok("number is set to 42".into()));
        assert_eq!(now("42"), 42);
        for (name, text, words) in [
            ("number", "100", "\"100\" is no number below 100"),
            ("number", "1\n", "one line"),
            ("number", "13", "panicked"),
            ("numbre", "1", "no setting \"numbre\": those that it has are number"),
        ] {
            let error = set(&settings, name, text).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
            assert_eq!(now("42"), 42);
        }
        assert!(set(&Settings::default(), "portmap", "").unwrap_err().ends_with("that it has are none"));
    }

    #[test]
    fn a_worker_that_does_not_let_go_is_named_to_the_client_who_cannot_wait() {
        let domain = Domain::new();
        let (settings, _published) = settings(&domain);
        let mut reader = domain.reader(3);
        reader.begin();
        (0..MOST_RETIRED).for_each(|_| drop(set(&settings, "number", "1").unwrap()));
        let error = set(&settings, "number", "2").unwrap_err();
        assert!(error.contains("worker 3 has not ended its turn"), "{error}");
        assert_eq!(settings.status()[0].text, "1");
        reader.quiescent();
        set(&settings, "number", "2").unwrap();
    }
}
