//! The part of MessagePack that profile rows are made of: integers, strings, arrays and maps.

pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn unsigned(&mut self, value: u64) {
        match value {
            0..=0x7f => self.0.push(value as u8),
            0x80..=0xff => self.0.extend([0xcc, value as u8]),
            0x100..=0xffff => self.long(0xcd, &(value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.long(0xce, &(value as u32).to_be_bytes()),
            _ => self.long(0xcf, &value.to_be_bytes()),
        }
    }

    pub fn integer(&mut self, value: i64) {
        match value {
            0.. => self.unsigned(value as u64),
            -32..=-1 => self.0.push(value as u8),
            -0x80..=-33 => self.0.extend([0xd0, value as u8]),
            -0x8000..=-0x81 => self.long(0xd1, &(value as i16).to_be_bytes()),
            -0x8000_0000..=-0x8001 => self.long(0xd2, &(value as i32).to_be_bytes()),
            _ => self.long(0xd3, &value.to_be_bytes()),
        }
    }

    pub fn text(&mut self, value: &str) {
        let bytes = value.as_bytes();
        match bytes.len() {
            n @ 0..=31 => self.0.push(0xa0 | n as u8),
            n @ 32..=0xff => self.0.extend([0xd9, n as u8]),
            n @ 0x100..=0xffff => self.long(0xda, &(n as u16).to_be_bytes()),
            n => self.long(0xdb, &(n as u32).to_be_bytes()),
        }
        self.0.extend_from_slice(bytes);
    }

    pub fn array(&mut self, length: usize) {
        match length {
            0..=15 => self.0.push(0x90 | length as u8),
            16..=0xffff => self.long(0xdc, &(length as u16).to_be_bytes()),
            _ => self.long(0xdd, &(length as u32).to_be_bytes()),
        }
    }

    pub fn map(&mut self, length: usize) {
        match length {
            0..=15 => self.0.push(0x80 | length as u8),
            16..=0xffff => self.long(0xde, &(length as u16).to_be_bytes()),
            _ => self.long(0xdf, &(length as u32).to_be_bytes()),
        }
    }

    fn long(&mut self, kind: u8, bytes: &[u8]) {
        self.0.push(kind);
        self.0.extend_from_slice(bytes);
    }
}

/// What is not a row, or is cut off.
#[derive(Debug)]
pub struct Malformed;

pub type Read<T> = Result<T, Malformed>;

pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn unsigned(&mut self) -> Read<u64> {
        match self.kind()? {
            kind @ 0..=0x7f => Ok(u64::from(kind)),
            kind @ 0xcc..=0xcf => self.number(1 << (kind - 0xcc)),
            _ => Err(Malformed),
        }
    }

    pub fn integer(&mut self) -> Read<i64> {
        match self.kind()? {
            kind @ 0..=0x7f => Ok(i64::from(kind)),
            kind @ 0xe0.. => Ok(i64::from(kind as i8)),
            kind @ 0xcc..=0xcf => {
                i64::try_from(self.number(1 << (kind - 0xcc))?).map_err(|_| Malformed)
            }
            0xd0 => Ok(i64::from(self.number(1)? as i8)),
            0xd1 => Ok(i64::from(self.number(2)? as i16)),
            0xd2 => Ok(i64::from(self.number(4)? as i32)),
            0xd3 => Ok(self.number(8)? as i64),
            _ => Err(Malformed),
        }
    }

    pub fn text(&mut self) -> Read<&'a str> {
        let length = match self.kind()? {
            kind @ 0xa0..=0xbf => usize::from(kind & 0x1f),
            kind @ 0xd9..=0xdb => self.number(1 << (kind - 0xd9))? as usize,
            _ => return Err(Malformed),
        };
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed)
    }

    pub fn array(&mut self) -> Read<usize> {
        match self.kind()? {
            kind @ 0x90..=0x9f => Ok(usize::from(kind & 0x0f)),
            0xdc => Ok(self.number(2)? as usize),
            0xdd => Ok(self.number(4)? as usize),
            _ => Err(Malformed),
        }
    }

    pub fn map(&mut self) -> Read<usize> {
        match self.kind()? {
            kind @ 0x80..=0x8f => Ok(usize::from(kind & 0x0f)),
            0xde => Ok(self.number(2)? as usize),
            0xdf => Ok(self.number(4)? as usize),
            _ => Err(Malformed),
        }
    }

    fn kind(&mut self) -> Read<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self, bytes: usize) -> Read<u64> {
        let taken = self.take(bytes)?;
        Ok(taken.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn take(&mut self, bytes: usize) -> Read<&'a [u8]> {
        if bytes > self.0.len() {
            return Err(Malformed);
        }
        let (taken, rest) = self.0.split_at(bytes);
        self.0 = rest;
        Ok(taken)
    }
}
