//! `doctor`: how a homeserver looks from outside.

use std::process::ExitCode;

use anyhow::Context as _;
use discovery::check::{Examination, Status, examine};
use discovery::{Discovery, Settings};

use super::{print, print_json};
use crate::args::{Doctor, StackArguments};
use crate::place::load;

/// Looks, and says what it has seen. The exit code is 1 where something does not work.
pub(crate) fn doctor(doctor: &Doctor, stack: &StackArguments) -> anyhow::Result<ExitCode> {
    let name = match &doctor.server_name {
        Some(name) => name.clone(),
        None => load(stack.config.as_deref())?.stack.server_name.to_string(),
    };
    let discovery = Discovery::new(&Settings {
        allowed_networks: doctor.allowed.clone(),
        ca_file: doctor.ca_file.clone(),
        insecure_skip_verify_tls: false,
        dns_server: doctor.dns_server,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let examination = runtime.context("cannot start threads")?.block_on(examine(&discovery, &name))?;
    if doctor.json.json {
        print_json(&examination)?;
    } else {
        print(&text(&examination))?;
    }
    Ok(if examination.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(examination: &Examination) -> String {
    let mut lines = vec![format!("How other servers find {}:", examination.server_name)];
    lines.extend(examination.server.steps.iter().map(|step| format!("  {}: {}", step.asked, step.found)));
    lines.push("How clients find it:".to_owned());
    lines.extend(examination.client_steps.iter().map(|step| format!("  {}: {}", step.asked, step.found)));
    lines.push(String::new());
    for finding in &examination.findings {
        let status = match finding.status {
            Status::Good => "good",
            Status::Warning => "warning",
            Status::Failure => "FAILURE",
        };
        lines.push(format!("{status:<8} {}: {}", finding.check, finding.found));
        lines.extend(finding.mend.iter().map(|mend| format!("         mend: {mend}")));
    }
    lines.join("\n") + "\n"
}
