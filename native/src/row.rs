//! A user's row, as profilehouse/profiles/fold.py describes it, and folding one event into it.
//!
//! Maps are sorted vectors: most hold a handful of entries.

use crate::msgpack::{Malformed, Read, Reader, Writer};

/// Microseconds of a day.
pub const DAY: i64 = 24 * 60 * 60 * 1_000_000;

type Days = Vec<(i64, i64)>;
type List = Vec<(i64, Box<str>, Box<str>)>;
type Tiles = Vec<(Box<str>, Days)>;

#[derive(Clone)]
pub struct Row {
    newest_received: i64,
    first_seen: i64,
    last_seen: i64,
    totals: Vec<i64>,
    tiles: Vec<Tiles>,
    lists: Vec<List>,
    seen_ids: Vec<(u64, i64)>,
    pub links: Vec<(String, String)>,
}

/// What an event of one type adds to: places in a row; whether its value is summed or it is counted;
/// the place in `Event::texts` of a tile's key and a list's value; days and entries kept.
pub struct Actions {
    pub totals: Vec<(usize, bool)>,
    pub tiles: Vec<(usize, Option<usize>, bool, i64)>,
    pub lists: Vec<(usize, usize, usize)>,
}

pub struct Event<'a> {
    pub id: &'a str,
    pub hash: u64,
    pub occurred: i64,
    pub received: i64,
    pub texts: [Option<&'a str>; 2],
    pub value: i64,
}

impl Row {
    pub fn new(totals: usize, tiles: usize, lists: usize) -> Row {
        Row {
            newest_received: i64::MIN,
            first_seen: i64::MAX,
            last_seen: i64::MIN,
            totals: vec![0; totals],
            tiles: vec![Tiles::new(); tiles],
            lists: vec![Vec::new(); lists],
            seen_ids: Vec::new(),
            links: Vec::new(),
        }
    }

    pub fn newest_day(&self) -> i64 {
        self.last_seen.div_euclid(DAY)
    }

    /// Fold an event that counts; a copy of one that the row remembers changes nothing.
    pub fn absorb(&mut self, event: &Event, todo: Option<&Actions>, late: i64) {
        self.newest_received = self.newest_received.max(event.received);
        let place = self.seen_ids.binary_search_by_key(&event.hash, |seen| seen.0);
        if place.is_ok_and(|found| self.seen_ids[found].1 + late >= self.newest_received) {
            return;
        }
        if event.occurred + late >= self.newest_received {
            match place {
                Ok(found) => self.seen_ids[found].1 = event.occurred,
                Err(free) => self.seen_ids.insert(free, (event.hash, event.occurred)),
            }
        }
        let happened = event.occurred.min(event.received - 1);
        self.first_seen = self.first_seen.min(happened);
        self.last_seen = self.last_seen.max(happened);
        if let Some(todo) = todo {
            self.add(event, todo, happened);
        }
    }

    fn add(&mut self, event: &Event, todo: &Actions, happened: i64) {
        for &(place, summed) in &todo.totals {
            self.totals[place] += if summed { event.value } else { 1 };
        }
        let day = happened.div_euclid(DAY);
        let newest_day = self.newest_day();
        for &(place, key, summed, days_kept) in &todo.tiles {
            let Some(name) = key.map_or(Some(""), |field| event.texts[field]) else {
                continue;
            };
            if day > newest_day - days_kept {
                let days = days_of(&mut self.tiles[place], name);
                add_to(days, day, if summed { event.value } else { 1 });
            }
        }
        for &(place, field, count) in &todo.lists {
            if let Some(value) = event.texts[field] {
                let list = &mut self.lists[place];
                let entry = (happened, event.id, value);
                let at = list.partition_point(|(time, id, held)| (*time, &**id, &**held) <= entry);
                list.insert(at, (happened, event.id.into(), value.into()));
                if list.len() > count {
                    list.drain(..list.len() - count);
                }
            }
        }
    }

    /// Drop the ids whose copies would come too late to count.
    pub fn forget_ids(&mut self, late: i64) {
        let oldest = self.newest_received - late;
        self.seen_ids.retain(|&(_, occurred)| occurred >= oldest);
    }

    /// Drop the days before each tiled feature's longest window.
    pub fn forget_days(&mut self, spans: &[i64]) {
        let newest_day = self.newest_day();
        for (days_kept, tiles) in spans.iter().zip(&mut self.tiles) {
            tiles.retain_mut(|(_, days)| {
                days.retain(|&(day, _)| day > newest_day - days_kept);
                !days.is_empty()
            });
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer(Vec::with_capacity(512));
        out.array(8);
        for time in [self.newest_received, self.first_seen, self.last_seen] {
            out.integer(time);
        }
        out.array(self.totals.len());
        for &total in &self.totals {
            out.integer(total);
        }
        out.array(self.tiles.len());
        for tiles in &self.tiles {
            out.map(tiles.len());
            for (key, days) in tiles {
                out.text(key);
                out.map(days.len());
                for &(day, value) in days {
                    out.integer(day);
                    out.integer(value);
                }
            }
        }
        out.array(self.lists.len());
        for list in &self.lists {
            out.array(list.len());
            for (happened, id, value) in list {
                out.array(3);
                out.integer(*happened);
                out.text(id);
                out.text(value);
            }
        }
        out.map(self.seen_ids.len());
        for &(hash, occurred) in &self.seen_ids {
            out.unsigned(hash);
            out.integer(occurred);
        }
        out.array(self.links.len());
        for (visitor, session) in &self.links {
            out.array(2);
            out.text(visitor);
            out.text(session);
        }
        out.0
    }

    pub fn decode(data: &[u8]) -> Read<Row> {
        let mut data = Reader(data);
        let parts = data.array()?;
        if !(7..=8).contains(&parts) {
            return Err(Malformed);
        }
        let [newest_received, first_seen, last_seen] =
            [data.integer()?, data.integer()?, data.integer()?];
        let totals = many(data.array()?, || data.integer())?;
        let tiles = many(data.array()?, || {
            let mut tiles = many(data.map()?, || {
                let key = data.text()?.into();
                let mut days = many(data.map()?, || Ok((data.integer()?, data.integer()?)))?;
                days.sort_unstable();
                Ok((key, days))
            })?;
            tiles.sort_unstable();
            Ok(tiles)
        })?;
        let lists = many(data.array()?, || {
            many(data.array()?, || match data.array()? {
                3 => Ok((data.integer()?, data.text()?.into(), data.text()?.into())),
                _ => Err(Malformed),
            })
        })?;
        let mut seen_ids = many(data.map()?, || Ok((data.unsigned()?, data.integer()?)))?;
        seen_ids.sort_unstable();
        let links = match parts {
            7 => Vec::new(),
            _ => many(data.array()?, || match data.array()? {
                2 => Ok((data.text()?.into(), data.text()?.into())),
                _ => Err(Malformed),
            })?,
        };
        Ok(Row { newest_received, first_seen, last_seen, totals, tiles, lists, seen_ids, links })
    }
}

fn many<T>(length: usize, mut one: impl FnMut() -> Read<T>) -> Read<Vec<T>> {
    (0..length).map(|_| one()).collect()
}

fn days_of<'a>(tiles: &'a mut Tiles, name: &str) -> &'a mut Days {
    let place = match tiles.binary_search_by(|(key, _)| (**key).cmp(name)) {
        Ok(found) => found,
        Err(free) => {
            tiles.insert(free, (name.into(), Days::new()));
            free
        }
    };
    &mut tiles[place].1
}

fn add_to(days: &mut Days, day: i64, amount: i64) {
    match days.binary_search_by_key(&day, |entry| entry.0) {
        Ok(found) => days[found].1 += amount,
        Err(free) => days.insert(free, (day, amount)),
    }
}
