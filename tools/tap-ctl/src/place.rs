//! Which storage domain is meant.

use rustix::io::Errno;

use crate::failure::Failure;

/// A domain of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number.
    pub id: u16,
    /// Its name; empty if it has none.
    pub name: String,
    /// It says of itself that it is tapdom, and ready.
    pub ready: bool,
}

impl Domain {
    /// For texts.
    pub fn title(&self) -> String {
        if self.name.is_empty() { format!("domain {}", self.id) } else { format!("{} (domain {})", self.name, self.id) }
    }
}

/// Chooses the domain by number or name, by tap-ctl's `-p`, or because there is only one that could be meant.
pub fn choose<'a>(domains: &'a [Domain], asked: Option<&str>, pid: Option<u32>) -> Result<&'a Domain, Failure> {
    let named = asked.map(|asked| named(domains, asked)).transpose()?;
    let numbered = pid.map(|pid| by_number(domains, pid)).transpose()?;
    let chosen = match (named, numbered) {
        (Some(named), Some(numbered)) if named.id != numbered.id => {
            let text = format!("-p {} and --domain {} are two domains", numbered.id, named.title());
            return Err(Failure::new(Errno::INVAL, text));
        }
        (Some(domain), _) | (None, Some(domain)) => domain,
        (None, None) => return only(domains),
    };
    // What it says of itself is no proof, but a domain that does not say it has no channel either.
    if !chosen.ready {
        return Err(Failure::new(Errno::NODEV, format!("{} is no storage domain, or not ready", chosen.title())));
    }
    Ok(chosen)
}

/// All that could be meant.
pub fn ready(domains: &[Domain]) -> impl Iterator<Item = &Domain> {
    domains.iter().filter(|domain| domain.ready)
}

fn only(domains: &[Domain]) -> Result<&Domain, Failure> {
    let all: Vec<&Domain> = ready(domains).collect();
    match all.as_slice() {
        [domain] => Ok(domain),
        [] => Err(Failure::new(Errno::NODEV, "there is no storage domain that is ready")),
        several => {
            let titles: Vec<String> = several.iter().map(|domain| domain.title()).collect();
            let text = format!("there are several storage domains, say --domain: {}", titles.join(", "));
            Err(Failure::new(Errno::INVAL, text))
        }
    }
}

/// A number is one even if a domain has it as its name.
fn named<'a>(domains: &'a [Domain], asked: &str) -> Result<&'a Domain, Failure> {
    if let Some(id) = protocol::number::u16(asked) {
        return by_number(domains, id.into());
    }
    let found = domains.iter().find(|domain| domain.name == asked);
    found.ok_or_else(|| Failure::new(Errno::NODEV, format!("there is no domain {asked}")))
}

fn by_number(domains: &[Domain], id: u32) -> Result<&Domain, Failure> {
    let found = domains.iter().find(|domain| u32::from(domain.id) == id);
    found.ok_or_else(|| Failure::new(Errno::NODEV, format!("there is no domain {id}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(text: &str) -> Vec<Domain> {
        text.split_whitespace()
            .map(|word| {
                let (id, name) = word.trim_end_matches('!').split_once('=').unwrap();
                Domain { id: id.parse().unwrap(), name: name.to_owned(), ready: word.ends_with('!') }
            })
            .collect()
    }

    #[test]
    fn every_way_to_say_which() {
        let one = domains("0=Domain-0 3=guest 5=tapdom!");
        let two = domains("0=Domain-0 5=tapdom! 6=! 7=9 9=late");
        let none = domains("0=Domain-0 3=guest");
        let table = [
            (&one, None, None, Ok(5)),
            (&one, Some("tapdom"), None, Ok(5)),
            (&one, Some("5"), None, Ok(5)),
            (&one, None, Some(5), Ok(5)),
            (&one, Some("tapdom"), Some(5), Ok(5)),
            (&one, Some("tapdom"), Some(3), Err((22, "-p 3 and --domain tapdom (domain 5) are two domains"))),
            (&one, Some("guest"), None, Err((19, "guest (domain 3) is no storage domain, or not ready"))),
            (&one, Some("nobody"), None, Err((19, "there is no domain nobody"))),
            (&one, None, Some(4), Err((19, "there is no domain 4"))),
            (
                &two,
                None,
                None,
                Err((22, "there are several storage domains, say --domain: tapdom (domain 5), domain 6")),
            ),
            (&two, Some("9"), None, Err((19, "late (domain 9) is no storage domain, or not ready"))),
            (&two, None, Some(6), Ok(6)),
            (&none, None, None, Err((19, "there is no storage domain that is ready"))),
        ];
        for (domains, asked, pid, expected) in table {
            let chosen = choose(domains, asked, pid).map(|domain| domain.id);
            let expected = expected.map_err(|(status, text): (u8, &str)| (status, text.to_owned()));
            assert_eq!(chosen.map_err(|why| (why.status(), why.to_string())), expected, "{asked:?} {pid:?}");
        }
        assert_eq!(ready(&two).count(), 2);
    }
}
