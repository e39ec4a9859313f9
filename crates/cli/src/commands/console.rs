//! `console`: the admin console beside a running stack.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use console::{Figures, Options, Plan};
use model::Layout;
use service::{Http, Signals};
use tokio::sync::Mutex;

use super::top::Source;
use crate::args::{Console, StackArguments};
use crate::place::Place;
use crate::top::{Sample, Seen, View};

/// What it serves is looked at anew no more often than this.
const APART: Duration = Duration::from_secs(1);

pub(crate) fn console(arguments: &Console, stack: &StackArguments) -> anyhow::Result<()> {
    let place = Place::find(stack)?;
    super::on_this_machine(&place)?;
    let audit_log =
        arguments.audit_log.clone().unwrap_or_else(|| place.layout.data_dir().join("console-audit.jsonl"));
    let cannot = || {
        let log = audit_log.display();
        format!(
            "cannot write the audit log `{log}`; start the stack once, or choose another with `--audit-log FILE`"
        )
    };
    let options = Options {
        plan: plan(&place)?,
        layout: place.layout.clone(),
        audit_log: audit_log.clone(),
        figures: figures(place.layout.clone()),
    };
    let console = console::Console::new(options).with_context(cannot)?;
    super::block_on(async {
        let signals = Signals::new().context("cannot handle signals")?;
        let listener = service::bind("--listen", &arguments.listen).await?;
        eprintln!("the console is at {}; SIGHUP reads the stack file again, SIGTERM stops", url(arguments));
        let http = Http { listener, app: console.app(), metrics: None };
        let reload = || {
            let new =
                Place::find(stack).and_then(|place| plan(&place)).map_err(|error| format!("{error:#}"))?;
            console.replan(new);
            Ok(())
        };
        tokio::select! {
            () = service::run(http, console.clone(), signals, reload) => {}
            never = console.tend() => never,
        }
        console.end().await;
        Ok(())
    })
}

fn url(arguments: &Console) -> String {
    match &arguments.listen {
        model::ListenAddress::Tcp(address) => format!("http://{address}/"),
        model::ListenAddress::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn plan(place: &Place) -> anyhow::Result<Plan> {
    let topology = place.plan()?;
    let routes = super::routes::matcher(&topology)?;
    let all = super::routes::matcher_of_all(&topology)?;
    Ok(Plan { topology, routes, all })
}

/// What `top` shows of what happened since somebody last asked.
fn figures(layout: Layout) -> Figures {
    let source = Arc::new(Source::Stack(layout));
    let last: Arc<Mutex<Option<(Sample, Seen)>>> = Arc::default();
    Box::new(move || {
        let (source, last) = (source.clone(), last.clone());
        Box::pin(async move {
            // Whoever asks meanwhile waits for this look, and then takes one of their own.
            let mut last = last.lock().await;
            let look = async {
                let (before, mut seen) = match last.take() {
                    Some(last) => last,
                    None => (source.sample().await?, Seen::default()),
                };
                tokio::time::sleep(APART.saturating_sub(before.at.elapsed())).await;
                let after = source.sample().await?;
                seen.note(&before, &after);
                let view =
                    serde_json::to_value(View::of(&before, &after, &seen)).map_err(|error| anyhow!(error))?;
                *last = Some((after, seen));
                anyhow::Ok(view)
            };
            look.await.map_err(|error| format!("{error:#}"))
        })
    })
}
