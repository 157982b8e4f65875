//! What commands print: blktap's lines for programs, tables for people, JSON for who asks for it.
//!
//! The lines are read by storage managers, so they are tap-ctl's to the byte. A terminal gets a table, whose form
//! nobody may rely on.

use serde_json::{Value, json};

use protocol::tapdisk::Image;

use crate::conversation::Vbd;

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// tap-ctl's own lines.
    Lines,
    /// For a person.
    Table,
    /// One JSON value.
    Json,
}

/// A row of `list`: a VBD of a domain, or a domain without any, or a minor that is set apart and in nobody's use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The domain's number.
    pub pid: Option<i32>,
    /// The VBD.
    pub vbd: Option<Vbd>,
    /// A minor without a VBD.
    pub reserved: Option<u16>,
}

impl Row {
    /// The minor, whoever has it.
    pub fn minor(&self) -> Option<u16> {
        self.vbd.as_ref().map(|vbd| vbd.minor).or(self.reserved)
    }

    /// Type and source of the image.
    pub fn image(&self) -> Option<(&str, &str)> {
        self.vbd.as_ref().and_then(|vbd| vbd.path.split_once(':'))
    }
}

/// The bits of a VBD's state, with the words that people get.
const STATES: [(u32, &str); 10] = [
    (0x001, "dead"),
    (0x002, "closed"),
    (0x004, "quiescing"),
    (0x008, "quiesced"),
    (0x010, "pausing"),
    (0x020, "paused"),
    (0x040, "shutting-down"),
    (0x080, "locking"),
    (0x100, "log-dropped"),
    (0x200, "resume-failed"),
];

/// printf's `%#x`: a 0 has no `0x`.
pub fn hex(number: u32) -> String {
    if number == 0 { "0".to_owned() } else { format!("{number:#x}") }
}

/// What `list` prints.
pub fn list(form: Form, rows: &[Row]) -> String {
    match form {
        Form::Lines => rows.iter().map(line).collect(),
        Form::Table => table(rows),
        Form::Json => format!("{}\n", Value::Array(rows.iter().map(object).collect())),
    }
}

/// `pid=%d minor=%d state=%#x args=type:path`, without what is not known.
fn line(row: &Row) -> String {
    let words = [
        row.pid.map(|pid| format!("pid={pid}")),
        row.minor().map(|minor| format!("minor={minor}")),
        row.vbd.as_ref().map(|vbd| format!("state={}", hex(vbd.state))),
        row.image().map(|(kind, path)| format!("args={kind}:{path}")),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    words.join(" ") + "\n"
}

fn object(row: &Row) -> Value {
    let mut object = serde_json::Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(name.to_owned(), value);
        }
    };
    put("pid", row.pid.map(Value::from));
    put("minor", row.minor().map(Value::from));
    put("state", row.vbd.as_ref().map(|vbd| Value::from(vbd.state)));
    put("type", row.image().map(|(kind, _)| Value::from(kind)));
    put("path", row.image().map(|(_, path)| Value::from(path)));
    Value::Object(object)
}

fn table(rows: &[Row]) -> String {
    let none = || "-".to_owned();
    let mut lines = vec![["DOMAIN", "MINOR", "STATE", "TYPE", "PATH"].map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            row.pid.map_or_else(none, |pid| pid.to_string()),
            row.minor().map_or_else(none, |minor| minor.to_string()),
            row.vbd.as_ref().map_or_else(none, |vbd| state(vbd.state)),
            row.image().map_or_else(none, |(kind, _)| kind.to_owned()),
            row.image().map_or_else(none, |(_, path)| path.to_owned()),
        ]
    }));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let [domain, minor, state, kind] = [0, 1, 2, 3].map(width);
    lines.iter().map(|[d, m, s, k, p]| format!("{d:>domain$}  {m:>minor$}  {s:<state$}  {k:<kind$}  {p}\n")).collect()
}

/// A state for people: the number that all documents speak of, and its words.
fn state(bits: u32) -> String {
    let words: Vec<&str> = STATES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect();
    if words.is_empty() { hex(bits) } else { format!("{} {}", hex(bits), words.join(",")) }
}

/// What `info` prints.
pub fn image(form: Form, image: Image) -> String {
    let Image { sectors, sector_size, info } = image;
    match form {
        Form::Lines => format!("sectors={sectors} sector-size={sector_size} info={}\n", hex(info)),
        Form::Table => {
            let bytes = u128::from(sectors) * u128::from(sector_size);
            format!("{}: {sectors} sectors of {sector_size} bytes, info {}\n", size(bytes), hex(info))
        }
        Form::Json => format!("{}\n", json!({ "sectors": sectors, "sector_size": sector_size, "info": info })),
    }
}

/// Bytes for people, to a tenth of the largest unit.
pub fn size(bytes: u128) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (0..units.len()).rev().find(|unit| bytes >> (10 * unit) != 0).unwrap_or(0);
    let (whole, rest) = (bytes >> (10 * unit), bytes & ((1 << (10 * unit)) - 1));
    match (rest * 10) >> (10 * unit) {
        0 => format!("{whole} {}", units[unit]),
        tenth => format!("{whole}.{tenth} {}", units[unit]),
    }
}

/// What `stats` prints: the server's own JSON, and behind it the two line ends that its readers know.
pub fn stats(form: Form, json: &[u8]) -> String {
    let text = String::from_utf8_lossy(json);
    match form {
        Form::Lines => format!("{text}\n\n"),
        Form::Json => format!("{text}\n"),
        Form::Table => match serde_json::from_str::<Value>(&text) {
            Ok(value) => format!("{value:#}\n"),
            // tapdisk's own is not always JSON; better as it is than not at all.
            Err(_) => format!("{text}\n"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vbd(minor: u16, state: u32, path: &str) -> Option<Vbd> {
        Some(Vbd { minor, state, path: path.to_owned() })
    }

    fn rows() -> Vec<Row> {
        vec![
            Row { pid: Some(5), vbd: vbd(0, 0, "aio:/dev/xvda"), reserved: None },
            Row { pid: Some(5), vbd: vbd(12, 0x2a, "vhd:/dev/VG/a:b c"), reserved: None },
            Row { pid: Some(5), vbd: vbd(300, 0x2, ""), reserved: None },
            Row { pid: Some(61), vbd: None, reserved: None },
            Row { pid: None, vbd: None, reserved: Some(7) },
        ]
    }

    /// The lines of blktap's tap-ctl for such VBDs, as tapdisk.md of its study notes them.
    #[test]
    fn lines_are_tap_ctls() {
        assert_eq!(
            list(Form::Lines, &rows()),
            "pid=5 minor=0 state=0 args=aio:/dev/xvda\n\
             pid=5 minor=12 state=0x2a args=vhd:/dev/VG/a:b c\n\
             pid=5 minor=300 state=0x2\n\
             pid=61\n\
             minor=7\n"
        );
        assert_eq!(list(Form::Lines, &[]), "");
    }

    #[test]
    fn tables_are_for_people() {
        assert_eq!(
            list(Form::Table, &rows()),
            "DOMAIN  MINOR  STATE                        TYPE  PATH\n     \
                  5      0  0                            aio   /dev/xvda\n     \
                  5     12  0x2a closed,quiesced,paused  vhd   /dev/VG/a:b c\n     \
                  5    300  0x2 closed                   -     -\n    \
                 61      -  -                            -     -\n     \
                  -      7  -                            -     -\n"
        );
    }

    #[test]
    fn json_is_one_value() {
        let text = list(Form::Json, &rows());
        assert_eq!(
            text,
            "[{\"pid\":5,\"minor\":0,\"state\":0,\"type\":\"aio\",\"path\":\"/dev/xvda\"},\
             {\"pid\":5,\"minor\":12,\"state\":42,\"type\":\"vhd\",\"path\":\"/dev/VG/a:b c\"},\
             {\"pid\":5,\"minor\":300,\"state\":2},{\"pid\":61},{\"minor\":7}]\n"
        );
        assert_eq!(list(Form::Json, &[]), "[]\n");
    }

    #[test]
    fn sizes() {
        let disk = Image { sectors: 24576, sector_size: 512, info: 4 };
        assert_eq!(image(Form::Lines, disk), "sectors=24576 sector-size=512 info=0x4\n");
        assert_eq!(image(Form::Table, disk), "12 MiB: 24576 sectors of 512 bytes, info 0x4\n");
        assert_eq!(image(Form::Json, disk), "{\"sectors\":24576,\"sector_size\":512,\"info\":4}\n");
        let huge = Image { sectors: u64::MAX, sector_size: u32::MAX, info: 0 };
        assert!(image(Form::Table, huge).contains(" EiB: 18446744073709551615 sectors"));
        for (bytes, text) in
            [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (5 << 39, "2.5 TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn statistics_are_the_servers() {
        let json = b"{ \"name\": \"aio:/dev/xvda\", \"secs\": [ 1, 2 ] }";
        assert_eq!(stats(Form::Lines, json), "{ \"name\": \"aio:/dev/xvda\", \"secs\": [ 1, 2 ] }\n\n");
        assert_eq!(stats(Form::Json, json), "{ \"name\": \"aio:/dev/xvda\", \"secs\": [ 1, 2 ] }\n");
        assert!(stats(Form::Table, json).starts_with("{\n  \"name\": \"aio:/dev/xvda\",\n"));
        assert_eq!(stats(Form::Table, b"{ not"), "{ not\n");
    }
}
