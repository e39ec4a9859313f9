//! The companions of a stack, each held against its own type.

use config::{Loaded, Report};
use model::CompanionKind;

/// Says what is wrong with the settings of companions.
pub(crate) fn check(loaded: &Loaded) -> Result<(), Report> {
    for kind in CompanionKind::ALL {
        match kind {
            CompanionKind::LivekitJwt => drop(loaded.companion::<livekit_jwt::Config>(kind)?),
            CompanionKind::Alertmanager => drop(loaded.companion::<hooks::alertmanager::Config>(kind)?),
            CompanionKind::SentryWebhook => drop(loaded.companion::<hooks::sentry::Config>(kind)?),
            CompanionKind::Webhook => drop(loaded.companion::<hooks::webhook::Config>(kind)?),
            CompanionKind::Ldap => {
                let settings = loaded.companion::<ldap_proxy::Settings>(kind)?;
                if let Some(Err(message)) = settings.map(|settings| settings.check()) {
                    let path = "companions.ldap.settings";
                    return Err(loaded.refusal(path, message, "change one of these settings"));
                }
            }
            // Its settings are the model's.
            CompanionKind::Mas => {}
        }
    }
    Ok(())
}
