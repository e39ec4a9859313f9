//! `diagram`: the stack as a picture.

use anyhow::Context as _;
use render::View;

use crate::args::{Diagram, DiagramFormat, DiagramView, StackArguments};
use crate::place::Place;

pub(crate) fn diagram(arguments: &Diagram, stack: &StackArguments) -> anyhow::Result<()> {
    let view = match arguments.view {
        DiagramView::Overview => View::Overview,
        DiagramView::Workers => View::Workers,
    };
    let picture = render::Diagram::of(&Place::find(stack)?.plan()?, view);
    let text = match arguments.format {
        DiagramFormat::Svg => picture.svg(),
        DiagramFormat::Mermaid => picture.mermaid(),
        DiagramFormat::Dot => picture.dot(),
    };
    let Some(out) = &arguments.out else { return super::print(&text) };
    std::fs::write(out, text)
        .with_context(|| format!("cannot write `{}`; choose another with `--out FILE`", out.display()))
}
