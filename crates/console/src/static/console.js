// Renews the live parts of the stack's page. Without it, the page shows what it was when it was loaded.
"use strict";
const live = document.querySelector("[data-live]");
if (live) {
  const said = document.getElementById("live-state");
  const number = (value, digits) => value.toFixed(digits);
  const figure = (process) => {
    const parts = [];
    if (process.traffic) parts.push(number(process.traffic.requests_per_second, 1) + "/s");
    if (process.cpu_percent !== null) parts.push(number(process.cpu_percent, 0) + "%");
    if (process.memory_bytes !== null) parts.push(Math.round(process.memory_bytes / 1048576) + "M");
    return parts.join(" ");
  };
  const show = (view) => {
    for (const process of view.instances) {
      const name = CSS.escape(process.name);
      for (const place of document.querySelectorAll(`[data-process="${name}"]`)) {
        place.classList.toggle("amiss", process.amiss);
        place.classList.toggle("good", !process.amiss);
        const text = place.querySelector(".figure");
        if (text) text.textContent = figure(process);
      }
      const row = document.querySelector(`tr[data-row="${name}"]`);
      if (!row) continue;
      const cell = (key, value) => {
        const place = row.querySelector(`[data-key="${key}"]`);
        if (place) place.textContent = value;
      };
      const traffic = process.traffic;
      const latency = (value) => (value ? number(value.seconds * 1000, 0) + " ms" : "–");
      cell("state", process.state);
      cell("rate", traffic ? number(traffic.requests_per_second, 1) : "–");
      cell("flight", traffic ? String(traffic.in_flight) : "–");
      cell("p50", traffic ? latency(traffic.p50) : "–");
      cell("p99", traffic ? latency(traffic.p99) : "–");
      cell("errors", traffic ? number(traffic.errors_per_second, 1) : "–");
      cell("cpu", process.cpu_percent === null ? "–" : number(process.cpu_percent, 0) + " %");
      cell("memory", process.memory_bytes === null ? "–" : Math.round(process.memory_bytes / 1048576) + " MiB");
    }
  };
  const renew = async () => {
    try {
      const answer = await fetch("/live.json", { headers: { accept: "application/json" } });
      if (answer.redirected || answer.status === 401) {
        location.reload();
        return;
      }
      const view = await answer.json();
      if (!answer.ok) throw new Error(view.error);
      show(view);
      said.textContent = "Live";
    } catch (error) {
      said.textContent = "Not live: " + error.message;
    }
    setTimeout(renew, 2500);
  };
  renew();
}
