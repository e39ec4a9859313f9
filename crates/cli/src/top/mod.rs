//! What `top` shows, without a terminal and without a clock: two [`Sample`]s become a [`View`], and a [`Screen`] draws it.

mod sample;
mod screen;
mod view;

#[cfg(test)]
mod tests;

pub(crate) use sample::{Sample, Scrape};
pub(crate) use screen::{Picture, Screen, Sort, Then, plain};
pub(crate) use view::{Seen, View};
