//! Arrow arrays of text and integers, as pyarrow hands over their buffers.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// `(length, offset, [validity, ...buffers])`, the buffers None where pyarrow has none.
pub type Given = (usize, usize, Vec<Option<PyBuffer<i8>>>);

pub struct Column {
    offset: usize,
    buffers: Vec<Option<PyBuffer<i8>>>,
}

impl Column {
    pub fn new((length, offset, buffers): Given, width: usize) -> PyResult<Column> {
        let column = Column { offset, buffers };
        let first = column.bytes(1);
        let entries = offset + length + usize::from(width == 4);
        if length > 0 && first.len() < entries * width {
            return Err(PyValueError::new_err("a column is shorter than it says"));
        }
        Ok(column)
    }

    /// The integer at a place; 0 for null.
    pub fn integer(&self, place: usize) -> i64 {
        if self.is_null(place) {
            return 0;
        }
        let at = (self.offset + place) * 8;
        i64::from_le_bytes(self.bytes(1)[at..at + 8].try_into().unwrap())
    }

    /// The text at a place; None for null.
    pub fn text(&self, place: usize) -> PyResult<Option<&str>> {
        if self.is_null(place) {
            return Ok(None);
        }
        let end = |n: usize| {
            let at = (self.offset + n) * 4;
            i32::from_le_bytes(self.bytes(1)[at..at + 4].try_into().unwrap()) as usize
        };
        let bytes = self
            .bytes(2)
            .get(end(place)..end(place + 1))
            .ok_or_else(|| PyValueError::new_err("a text lies outside of its column"))?;
        std::str::from_utf8(bytes)
            .map(Some)
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    fn is_null(&self, place: usize) -> bool {
        let at = self.offset + place;
        let valid = self.bytes(0);
        !valid.is_empty() && valid[at / 8] >> (at % 8) & 1 == 0
    }

    fn bytes(&self, place: usize) -> &[u8] {
        match self.buffers.get(place) {
            // Sound: a contiguous buffer of bytes, held by `self`, of an Arrow array, which never changes.
            Some(Some(buffer)) if buffer.len_bytes() > 0 => unsafe {
                std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes())
            },
            _ => &[],
        }
    }
}
