//! `top`: a running stack, live. What is shown is `crate::top`'s business; here it is asked for and put on a terminal.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use model::{Address, Layout};
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{self, EnterAlternateScreen};
use ratatui::layout::Rect;
use ratatui::{DefaultTerminal, TerminalOptions, Viewport};
use runtime::client::{self, ClientError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::args::{StackArguments, Top};
use crate::place::Place;
use crate::top::{Picture, Sample, Scrape, Screen, Seen, Then, View, plain};

/// The width of what is printed where no terminal has one.
const WIDTH: u16 = 120;
/// Until the first picture: long enough to tell a rate.
const FIRST: f64 = 1.0;

/// Who is asked.
pub(crate) enum Source {
    Stack(Layout),
    Router(Address),
}

impl Source {
    pub(crate) async fn sample(&self) -> anyhow::Result<Sample> {
        let (status, text) = match self {
            Self::Stack(layout) => {
                let status = client::status(layout).await?;
                match client::metrics(layout).await {
                    Ok(text) => (Some(status), Some(text)),
                    // While the stack starts there is no router yet.
                    Err(ClientError::Refused { .. }) => (Some(status), None),
                    Err(error) => return Err(error.into()),
                }
            }
            Self::Router(address) => {
                let text = client::metrics_at(address).await;
                let ask = || {
                    format!(
                        "cannot ask the router at http://{address}; its address is `listen.metrics` in the stack file"
                    )
                };
                (None, Some(text.with_context(ask)?))
            }
        };
        let scrape = match text {
            Some(text) => {
                Scrape::parse(&text).ok_or_else(|| anyhow!("what answers is no router of matrix-stack"))?
            }
            None => Scrape::default(),
        };
        Ok(Sample { at: Instant::now(), status, scrape })
    }
}

pub(crate) fn top(arguments: &Top, stack: &StackArguments) -> anyhow::Result<()> {
    let source = match &arguments.url {
        Some(address) => Source::Router(address.clone()),
        None => Source::Stack(Place::find(stack)?.layout),
    };
    let screen = Screen::new(arguments.sort, &arguments.filter);
    super::block_on(async {
        if arguments.once || arguments.json || !io::stdout().is_terminal() {
            let view = once(&source, arguments.interval).await?;
            return if arguments.json {
                super::print_json(&view)
            } else {
                super::print(&plain(&screen, &view, WIDTH))
            };
        }
        live(source, screen, arguments.interval).await
    })
}

/// What one interval brings.
async fn once(source: &Source, seconds: f64) -> anyhow::Result<View> {
    let before = source.sample().await?;
    sleep(Duration::from_secs_f64(seconds)).await;
    let after = source.sample().await?;
    let mut seen = Seen::default();
    seen.note(&before, &after);
    Ok(View::of(&before, &after, &seen))
}

/// The terminal is as it was again when this is dropped. (A panic sets it right too, before it says anything.)
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
        // If it cannot be told, nobody sees it either.
        let _ = execute!(io::stdout(), Show);
    }
}

/// The size of a terminal that does not tell its own.
const USUAL: Rect = Rect::new(0, 0, 80, 24);

fn terminal() -> io::Result<DefaultTerminal> {
    let viewport = match terminal::size() {
        Ok((width, height)) if width > 0 && height > 0 => Viewport::Fullscreen,
        _ => Viewport::Fixed(USUAL),
    };
    let terminal = ratatui::try_init_with_options(TerminalOptions { viewport })?;
    execute!(io::stdout(), EnterAlternateScreen, Hide)?;
    Ok(terminal)
}

/// Shows what happens until somebody has seen enough.
async fn live(source: Source, mut screen: Screen, interval: f64) -> anyhow::Result<()> {
    // Whoever asks for what is not there is told so in the ordinary way.
    let mut before = source.sample().await?;
    let mut end = End::new().context("cannot handle signals")?;
    let _restored = Restored;
    let mut terminal = terminal().context("cannot use the terminal; `--once` needs none")?;
    let mut events = events();
    let mut samples = samples(source, interval);
    let (mut seen, mut view, mut trouble) = (Seen::default(), None, None::<String>);
    loop {
        let picture = Picture { view: view.as_ref(), trouble: trouble.as_deref() };
        terminal.draw(|frame| screen.draw(frame, picture)).context("cannot draw on the terminal")?;
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Key(key)) if screen.key(key) == Then::Quit => return Ok(()),
                Some(_) => {}
                // The terminal is gone.
                None => return Ok(()),
            },
            () = end.comes() => return Ok(()),
            Some(after) = samples.recv() => match after {
                Ok(after) => {
                    seen.note(&before, &after);
                    if !screen.paused {
                        view = Some(View::of(&before, &after, &seen));
                    }
                    (before, trouble) = (after, None);
                }
                // It may come back: a stack is restarted, say.
                Err(error) => trouble = Some(format!("{error:#}")),
            },
        }
    }
}

/// A sample every so many seconds, whatever else happens.
fn samples(source: Source, seconds: f64) -> mpsc::Receiver<anyhow::Result<Sample>> {
    let (told, samples) = mpsc::channel(1);
    tokio::spawn(async move {
        sleep(Duration::from_secs_f64(FIRST.min(seconds))).await;
        while told.send(source.sample().await).await.is_ok() {
            sleep(Duration::from_secs_f64(seconds)).await;
        }
    });
    samples
}

/// What happens on the terminal. The thread that waits for it ends with the process.
fn events() -> mpsc::Receiver<Event> {
    let (told, events) = mpsc::channel(64);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if told.blocking_send(event).is_err() {
                return;
            }
        }
    });
    events
}

/// The signals that end it.
struct End([Signal; 3]);

impl End {
    fn new() -> io::Result<Self> {
        let on = |kind| signal(kind);
        Ok(Self([on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?]))
    }

    async fn comes(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
