//! What a live process spends its time on, compiled: the twin of `profilehouse.profiles.fold.absorb`
//! and of the decoding in `profilehouse.events.web`. Python's own stays the reference: tests hold
//! both equal, and a record that is not plain is left to it.

mod blake2b;
mod columns;
mod decode;
mod msgpack;
mod row;

use std::collections::HashMap;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use columns::{Column, Given};
use row::{Actions, Event};

/// A user's row.
#[pyclass(module = "profilehouse_native")]
struct Row(row::Row);

#[pymethods]
impl Row {
    /// The row that `encode`, here or in fold.py, wrote.
    #[staticmethod]
    fn decode(data: &[u8]) -> PyResult<Row> {
        match row::Row::decode(data) {
            Ok(row) => Ok(Row(row)),
            Err(_) => Err(PyValueError::new_err("not an encoded row")),
        }
    }

    /// The row as MessagePack.
    fn encode<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.encode())
    }

    /// The (anonymous_id, session_id) of the user's logins.
    #[getter]
    fn links(&self) -> Vec<(String, String)> {
        self.0.links.clone()
    }

    #[setter]
    fn set_links(&mut self, links: Vec<(String, String)>) {
        self.0.links = links;
    }
}

/// What a row keeps, and of which events.
#[pyclass(module = "profilehouse_native", frozen)]
struct Fold {
    totals: usize,
    spans: Vec<i64>,
    lists: usize,
    late: i64,
    actions: HashMap<String, Actions>,
}

type Totals = Vec<(usize, bool)>;
type Tiles = Vec<(usize, Option<usize>, bool, i64)>;
type Lists = Vec<(usize, usize, usize)>;

#[pymethods]
impl Fold {
    /// Fields are 0 for content_id and 1 for category; `late` is in microseconds.
    #[new]
    fn new(
        totals: usize,
        spans: Vec<i64>,
        lists: usize,
        late: i64,
        actions: HashMap<String, (Totals, Tiles, Lists)>,
    ) -> Fold {
        let actions = actions
            .into_iter()
            .map(|(kind, (totals, tiles, lists))| (kind, Actions { totals, tiles, lists }))
            .collect();
        Fold { totals, spans, lists, late, actions }
    }

    /// Fold events into the rows of their users, in place; the users, each once.
    ///
    /// `columns` are user_id, event_id, event_type, content_id, category (text), occurred_at,
    /// received_at and value_cents (integers), all of one length.
    fn absorb<'py>(
        &self,
        rows: &Bound<'py, PyDict>,
        columns: Vec<Given>,
    ) -> PyResult<Vec<Bound<'py, PyString>>> {
        let py = rows.py();
        let length = columns.first().map_or(0, |column| column.0);
        let columns = columns
            .into_iter()
            .enumerate()
            .map(|(place, given)| Column::new(given, if place < 5 { 4 } else { 8 }))
            .collect::<PyResult<Vec<_>>>()?;
        let [user, id, kind, content, category, occurred, received, value] = &columns[..] else {
            return Err(PyValueError::new_err("eight columns are wanted"));
        };
        let mut order: Vec<usize> = (0..length).collect();
        order.retain(|&n| received.integer(n) - occurred.integer(n) <= self.late);
        order.sort_by_key(|&n| received.integer(n));
        let mut places: HashMap<&str, usize> = HashMap::with_capacity(order.len());
        let mut users: Vec<Bound<'py, PyString>> = Vec::new();
        let mut touched: Vec<(PyRefMut<'py, Row>, i64)> = Vec::new();
        for n in order {
            let name = user.text(n)?.unwrap_or_default();
            let place = match places.get(name) {
                Some(&place) => place,
                None => {
                    let key = PyString::new(py, name);
                    let row = match rows.get_item(&key)? {
                        Some(row) => row.cast_into::<Row>()?,
                        None => {
                            let new = row::Row::new(self.totals, self.spans.len(), self.lists);
                            let row = Bound::new(py, Row(new))?;
                            rows.set_item(&key, &row)?;
                            row
                        }
                    };
                    let row = row.try_borrow_mut()?;
                    let newest_day = row.0.newest_day();
                    touched.push((row, newest_day));
                    users.push(key);
                    places.insert(name, users.len() - 1);
                    users.len() - 1
                }
            };
            let id = id.text(n)?.unwrap_or_default();
            let event = Event {
                id,
                hash: blake2b::hash(id.as_bytes()),
                occurred: occurred.integer(n),
                received: received.integer(n),
                texts: [content.text(n)?, category.text(n)?],
                value: value.integer(n),
            };
            let todo = self.actions.get(kind.text(n)?.unwrap_or_default());
            touched[place].0 .0.absorb(&event, todo, self.late);
        }
        for (row, newest_day) in &mut touched {
            row.0.forget_ids(self.late);
            if row.0.newest_day() > *newest_day {
                row.0.forget_days(&self.spans);
            }
        }
        Ok(users)
    }
}

#[pymodule]
fn profilehouse_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Row>()?;
    module.add_class::<Fold>()?;
    module.add_class::<decode::Decoder>()?;
    Ok(())
}
