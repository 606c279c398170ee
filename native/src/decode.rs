//! Plain records of the web contract, from JSON to columns. A record is plain if it is beyond doubt:
//! every rule of the contract is met, no string but the free JSON holds an escape, nothing comes
//! twice. All others are left to Python, which has the last word on them.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

const DEEPEST: usize = 32;
const DIGITS: usize = 18;

/// What a field of a record may be.
enum Kind {
    /// One of these texts.
    Literal(Vec<String>),
    /// At most so many characters (0: any number), at least one; all graphic ASCII, or any.
    Text {
        most: usize,
        graphic: bool,
    },
    Integer {
        low: i64,
        high: i64,
    },
    Boolean,
    Timestamp,
    Object,
    /// Not judged here: a record that has it is not plain.
    Other,
}

struct Field {
    name: String,
    kind: Kind,
    required: bool,
}

/// A field's values: text with offsets, or eight bytes each; and which are there.
struct Values {
    wide: bool,
    present: Vec<bool>,
    offsets: Vec<u8>,
    data: Vec<u8>,
}

impl Values {
    fn new(kind: &Kind) -> Values {
        let wide = matches!(kind, Kind::Integer { .. } | Kind::Timestamp | Kind::Boolean);
        Values { wide, present: Vec::new(), offsets: vec![0; 4], data: Vec::new() }
    }

    fn push(&mut self, value: Option<Value>) {
        self.present.push(value.is_some());
        match value {
            Some(Value::Text(text)) => self.data.extend_from_slice(text),
            Some(Value::Integer(number)) => self.data.extend_from_slice(&number.to_le_bytes()),
            None if self.wide => self.data.extend_from_slice(&[0; 8]),
            None => {}
        }
        if !self.wide {
            self.offsets.extend_from_slice(&(self.data.len() as i32).to_le_bytes());
        }
    }

    fn bitmap(&self) -> Vec<u8> {
        let mut bits = vec![0u8; self.present.len().div_ceil(8)];
        for (n, _) in self.present.iter().enumerate().filter(|(_, present)| **present) {
            bits[n / 8] |= 1 << (n % 8);
        }
        bits
    }
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Text(&'a [u8]),
    Integer(i64),
}

/// Decodes plain records.
#[pyclass(module = "profilehouse_native", frozen)]
pub struct Decoder {
    fields: Vec<Field>,
    either: Vec<String>,
    years: (i64, i64),
}

type Rule = (Vec<String>, usize, (i64, i64));
type Columns<'py> =
    HashMap<String, (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Bound<'py, PyBytes>)>;

#[pymethods]
impl Decoder {
    /// Fields are `(name, kind, required, (literals, most characters, (least, greatest)))`, kinds
    /// `literal`, `graphic`, `text`, `integer`, `boolean`, `timestamp`, `object`; a record with a
    /// field of another kind is not plain, nor one with none of the fields `either`, nor one with a
    /// time of a year not between `years`.
    #[new]
    fn new(
        fields: Vec<(String, String, bool, Rule)>,
        either: Vec<String>,
        years: (i64, i64),
    ) -> Decoder {
        let field =
            |(name, kind, required, (literals, most, (low, high))): (_, String, _, Rule)| {
                let kind = match kind.as_str() {
                    "literal" => Kind::Literal(literals),
                    "graphic" => Kind::Text { most, graphic: true },
                    "text" => Kind::Text { most, graphic: false },
                    "integer" => Kind::Integer { low, high },
                    "boolean" => Kind::Boolean,
                    "timestamp" => Kind::Timestamp,
                    "object" => Kind::Object,
                    _ => Kind::Other,
                };
                Field { name, kind, required }
            };
        Decoder { fields: fields.into_iter().map(field).collect(), either, years }
    }

    /// The places of the plain records, and their columns by field: validity, offsets and data of
    /// text; validity, nothing and eight bytes each of integers, booleans and times (microseconds
    /// since 1970, UTC).
    fn decode<'py>(
        &self,
        py: Python<'py>,
        values: Vec<Bound<'py, PyBytes>>,
    ) -> (Vec<usize>, Columns<'py>) {
        let records: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        let (places, columns) = py.detach(|| self.plain(&records));
        let columns = self
            .fields
            .iter()
            .zip(columns)
            .map(|(field, values)| {
                let buffers = (
                    PyBytes::new(py, &values.bitmap()),
                    PyBytes::new(py, &values.offsets),
                    PyBytes::new(py, &values.data),
                );
                (field.name.clone(), buffers)
            })
            .collect();
        (places, columns)
    }
}

impl Decoder {
    fn plain(&self, records: &[&[u8]]) -> (Vec<usize>, Vec<Values>) {
        let mut places = Vec::with_capacity(records.len());
        let mut columns: Vec<Values> = self.fields.iter().map(|f| Values::new(&f.kind)).collect();
        let mut record = vec![None; self.fields.len()];
        for (place, bytes) in records.iter().enumerate() {
            record.fill(None);
            if self.read(bytes, &mut record).is_some() {
                places.push(place);
                for (column, value) in columns.iter_mut().zip(&record) {
                    column.push(*value);
                }
            }
        }
        (places, columns)
    }

    /// A record's values by field; None where it is not plain.
    fn read<'a>(&self, bytes: &'a [u8], record: &mut [Option<Value<'a>>]) -> Option<()> {
        std::str::from_utf8(bytes).ok()?;
        let mut json = Json { bytes, at: 0 };
        let mut seen = vec![false; self.fields.len()];
        let mut next = 0;
        json.object(|json| {
            let name = json.string()?;
            let place = self.place(name, next)?;
            next = place + 1;
            if std::mem::replace(&mut seen[place], true) {
                return None;
            }
            json.colon()?;
            let field = &self.fields[place];
            record[place] = if json.null() { None } else { Some(self.value(field, json)?) };
            Some(())
        })?;
        json.space();
        let whole = json.at == bytes.len();
        let complete =
            self.fields.iter().zip(record.iter()).all(|(f, value)| value.is_some() || !f.required);
        let named = self
            .fields
            .iter()
            .zip(record.iter())
            .any(|(f, value)| value.is_some() && self.either.contains(&f.name));
        (whole && complete && named).then_some(())
    }

    fn place(&self, name: &[u8], next: usize) -> Option<usize> {
        let is = |place: &usize| self.fields.get(*place).is_some_and(|f| f.name.as_bytes() == name);
        Some(next).filter(is).or_else(|| (0..self.fields.len()).find(is))
    }

    fn value<'a>(&self, field: &Field, json: &mut Json<'a>) -> Option<Value<'a>> {
        match &field.kind {
            Kind::Literal(literals) => {
                let text = json.string()?;
                literals.iter().any(|l| l.as_bytes() == text).then_some(Value::Text(text))
            }
            Kind::Text { most, graphic } => {
                let text = json.string()?;
                let fits = match (graphic, most) {
                    (true, _) => text.iter().all(u8::is_ascii_graphic) && text.len() <= *most,
                    (false, 0) => return Some(Value::Text(text)),
                    (false, _) => std::str::from_utf8(text).ok()?.chars().count() <= *most,
                };
                (fits && !text.is_empty()).then_some(Value::Text(text))
            }
            Kind::Integer { low, high } => {
                let number = json.integer()?;
                (low..=high).contains(&&number).then_some(Value::Integer(number))
            }
            Kind::Boolean => json.boolean().map(|value| Value::Integer(i64::from(value))),
            Kind::Timestamp => self.time(json.string()?).map(Value::Integer),
            Kind::Object => {
                let start = json.at;
                (json.peek()? == b'{').then_some(())?;
                json.skip(DEEPEST)?;
                Some(Value::Text(&json.bytes[start..json.at]))
            }
            Kind::Other => None,
        }
    }

    /// Microseconds since 1970 of `2026-11-23T08:30:00[.123456](Z|+01:00)`.
    fn time(&self, text: &[u8]) -> Option<i64> {
        let number = |from: usize, to: usize| -> Option<i64> {
            text.get(from..to)?.iter().try_fold(0, |number, digit| {
                digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0'))
            })
        };
        let is = |at: usize, byte: u8| (text.get(at) == Some(&byte)).then_some(());
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        is(4, b'-').and(is(7, b'-')).and(is(10, b'T')).and(is(13, b':')).and(is(16, b':'))?;
        if !(self.years.0 < year && year < self.years.1) || hour > 23 || minute > 59 || second > 59
        {
            return None;
        }
        let mut at = 19;
        let mut micros = 0;
        if text.get(at) == Some(&b'.') {
            let digits = text[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=6).contains(&digits) {
                return None;
            }
            micros = number(at + 1, at + 1 + digits)? * 10i64.pow(6 - digits as u32);
            at += 1 + digits;
        }
        let zone = match text.get(at)? {
            b'Z' => {
                at += 1;
                0
            }
            sign @ (b'+' | b'-') => {
                is(at + 3, b':')?;
                let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
                if hours > 23 || minutes > 59 {
                    return None;
                }
                at += 6;
                (hours * 60 + minutes) * if *sign == b'-' { -1 } else { 1 }
            }
            _ => return None,
        };
        if at != text.len() {
            return None;
        }
        let seconds =
            days(year, month, day)? * 86_400 + hour * 3_600 + (minute - zone) * 60 + second;
        Some(seconds * 1_000_000 + micros)
    }
}

/// Days since 1970 of a date of the Gregorian calendar; None where there is no such day.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    let past = year - 1;
    let leaps = past / 4 - past / 100 + past / 400 - 477;
    Some((year - 1970) * 365 + leaps + before + i64::from(leap && month > 2) + day - 1)
}

/// A reader of JSON that gives up at the first doubt.
struct Json<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Json<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn colon(&mut self) -> Option<()> {
        self.space();
        self.take(b':')?;
        self.space();
        Some(())
    }

    fn word(&mut self, word: &[u8]) -> bool {
        let is = self.bytes[self.at..].starts_with(word);
        self.at += if is { word.len() } else { 0 };
        is
    }

    fn null(&mut self) -> bool {
        self.word(b"null")
    }

    fn boolean(&mut self) -> Option<bool> {
        if self.word(b"true") {
            return Some(true);
        }
        self.word(b"false").then_some(false)
    }

    /// A string without escapes.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let start = self.at;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' | 0..=0x1f => return None,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(&self.bytes[start..self.at - 1])
    }

    fn integer(&mut self) -> Option<i64> {
        let negative = self.take(b'-').is_some();
        let start = self.at;
        let mut number = 0i64;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            number = number.checked_mul(10)?.checked_add(i64::from(digit - b'0'))?;
            self.at += 1;
        }
        let digits = self.at - start;
        let plain = digits == 1 || (1..=DIGITS).contains(&digits) && self.bytes[start] != b'0';
        let ends = !matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        (plain && ends).then_some(if negative { -number } else { number })
    }

    /// The members of an object, each read by `member` from its name on.
    fn object(&mut self, mut member: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.space();
        self.take(b'{')?;
        self.space();
        if self.take(b'}').is_some() {
            return Some(());
        }
        loop {
            self.space();
            member(self)?;
            self.space();
            if self.take(b'}').is_some() {
                return Some(());
            }
            self.take(b',')?;
        }
    }

    fn number(&mut self) -> Option<()> {
        let digits = |json: &mut Self| {
            let start = json.at;
            while matches!(json.peek(), Some(b'0'..=b'9')) {
                json.at += 1;
            }
            (json.at > start).then_some(json.at - start)
        };
        let _ = self.take(b'-');
        let leading = self.peek()?;
        if digits(self)? > 1 && leading == b'0' {
            return None;
        }
        if self.take(b'.').is_some() {
            digits(self)?;
        }
        if self.take(b'e').or_else(|| self.take(b'E')).is_some() {
            let _ = self.take(b'+').or_else(|| self.take(b'-'));
            digits(self)?;
        }
        Some(())
    }

    /// Any value without escapes, at most so deep.
    fn skip(&mut self, deepest: usize) -> Option<()> {
        match self.peek()? {
            b'"' => self.string().map(drop),
            b'{' => {
                let deepest = deepest.checked_sub(1)?;
                self.object(|json| {
                    json.string()?;
                    json.colon()?;
                    json.skip(deepest)
                })
            }
            b'[' => {
                let deepest = deepest.checked_sub(1)?;
                self.at += 1;
                self.space();
                if self.take(b']').is_some() {
                    return Some(());
                }
                loop {
                    self.space();
                    self.skip(deepest)?;
                    self.space();
                    if self.take(b']').is_some() {
                        return Some(());
                    }
                    self.take(b',')?;
                }
            }
            b't' | b'f' => self.boolean().map(drop),
            b'n' => self.null().then_some(()),
            _ => self.number(),
        }
    }
}
