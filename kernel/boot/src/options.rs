//! The image's own words on the command line.

use log::LevelFilter;

/// How much is logged: `loglevel=error|warn|info|debug|trace`; `info` if nothing is said. `Err` has the word nobody
/// knows.
pub fn level(command_line: &str) -> Result<LevelFilter, &str> {
    let said = command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix("loglevel=")).next_back();
    match said {
        None => Ok(LevelFilter::Info),
        Some(word) => word.parse().map_err(|_| word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_level_counts() {
        assert_eq!(level(""), Ok(LevelFilter::Info));
        assert_eq!(level("console=hvc0 loglevel=debug"), Ok(LevelFilter::Debug));
        assert_eq!(level("loglevel=debug loglevel=warn"), Ok(LevelFilter::Warn));
        assert_eq!(level("loglevel=7"), Err("7"));
        assert_eq!(level("xloglevel=debug"), Ok(LevelFilter::Info));
    }
}
