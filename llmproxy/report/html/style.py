"""How a study's page looks: one style sheet, for light and dark, phones and paper.

The hues are Okabe and Ito's, which the colour-blind tell apart, made darker on white and
lighter on black: each is at least 4.5:1 against the page behind it.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9;
  --card: #fff;
  --ink: #1b1d21;
  --soft: #5d636e;
  --rule: #dfe0dc;
  --wash: #f3f3ef;
  --good: #5b7f9f;
  --fair: #c0a04a;
  --bad: #b3261e;
  --del: #fbe3e0;
  --del-ink: #8c1d18;
  --ins: #dcefdf;
  --ins-ink: #0f5223;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a;
    --card: #1b1e22;
    --ink: #e6e7e9;
    --soft: #a0a7b1;
    --rule: #33383f;
    --wash: #22262b;
    --good: #6d94b8;
    --fair: #b59a4c;
    --bad: #ff8a80;
    --del: #4a2422;
    --del-ink: #ffb4ab;
    --ins: #1c3b26;
    --ins-ink: #a5dfb4;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0;
  background: var(--paper);
  color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    "Liberation Sans", sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 {
  font-size: 1.75rem;
  line-height: 1.2;
  font-weight: 650;
  letter-spacing: -.015em;
  margin: 0 0 .4rem;
}
h2 { font-size: 1.15rem; font-weight: 650; letter-spacing: -.005em; margin: 3rem 0 .9rem; }
h3 { font-size: .875rem; font-weight: 600; margin: 0 0 .5rem; }
p { margin: .4rem 0; }
.soft, .none { color: var(--soft); }
.none { opacity: .6; }
.about { color: var(--soft); font-size: .9rem; margin: 0; }
.notice {
  border-left: 3px solid var(--fair);
  background: var(--wash);
  padding: .6rem .9rem;
  margin: 1.25rem 0;
  border-radius: 0 6px 6px 0;
}
.failure { color: var(--bad); }
.nowrap { white-space: nowrap; }
code, pre {
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .8125rem;
}
.verdict { margin: 2rem 0 0; border-top: 1px solid var(--rule); }
.verdict div {
  display: grid;
  grid-template-columns: 10.5rem 1fr;
  gap: .2rem 1.5rem;
  padding: .75rem 0;
  border-bottom: 1px solid var(--rule);
}
.verdict dt { color: var(--soft); }
.verdict dd { margin: 0; max-width: 58rem; font-variant-numeric: tabular-nums; }
.model { font-weight: 600; }
b .model { font-weight: inherit; }
.wide { overflow-x: auto; max-width: 100%; }
.wide:focus-visible { outline: 2px solid var(--m0); outline-offset: 3px; }
table {
  border-collapse: collapse;
  font-size: .9rem;
  font-variant-numeric: tabular-nums;
  overflow-wrap: normal;
}
td, th {
  padding: .3rem 0 .3rem 1.75rem;
  text-align: right;
  vertical-align: top;
  font-weight: 400;
  white-space: nowrap;
}
tr > :first-child { padding-left: 0; text-align: left; }
thead th {
  font-weight: 600;
  white-space: normal;
  overflow-wrap: anywhere;
  min-width: 7.5rem;
  max-width: 14rem;
  vertical-align: bottom;
}
tbody th[scope=row] { color: var(--soft); }
td.words { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
.group th {
  padding-top: 1.1rem;
  font-weight: 600;
  border-bottom: 1px solid var(--rule);
  text-align: left;
}
.rows tbody tr + tr > * { border-top: 1px solid var(--rule); }
.rows thead th { font-weight: 400; color: var(--soft); min-width: 0; white-space: nowrap; }
.rows tbody th[scope=row] { color: var(--ink); white-space: normal; min-width: 13rem; }
.grid {
  display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
  gap: 1rem;
}
figure {
  margin: 0;
  background: var(--card);
  border: 1px solid var(--rule);
  border-radius: 10px;
  padding: 1rem 1rem .85rem;
  min-width: 0;
}
.halves { display: flex; flex-wrap: wrap; gap: 0 4rem; }
.halves > .wide { flex: 1 1 26rem; }
.halves table { width: 100%; }
.legend { margin-bottom: .9rem; }
figure h3 { margin-bottom: .75rem; }
figcaption { color: var(--soft); font-size: .8125rem; line-height: 1.45; margin-top: .6rem; }
details > summary { cursor: pointer; }
.fold > summary { color: var(--soft); font-size: .9rem; margin-top: 1rem; }
.request { border-top: 1px solid var(--rule); }
.request:last-of-type { border-bottom: 1px solid var(--rule); }
.request > summary {
  display: grid;
  grid-template-columns: 2.25rem 1fr auto;
  gap: 0 .75rem;
  padding: .65rem 0;
  align-items: baseline;
  list-style: none;
}
.request > summary::-webkit-details-marker { display: none; }
.request > summary:hover .first, .request > summary:focus-visible .first {
  text-decoration: underline;
  text-underline-offset: .2em;
  text-decoration-color: var(--rule);
}
.request[open] > summary .first { font-weight: 600; white-space: normal; }
.place {
  color: var(--soft);
  text-align: right;
  font-variant-numeric: tabular-nums;
  font-size: .875rem;
}
.first { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.chips {
  display: flex;
  flex-wrap: wrap;
  justify-content: flex-end;
  gap: 0 1rem;
  font-size: .8125rem;
  font-variant-numeric: tabular-nums;
  color: var(--soft);
}
.chip { min-width: 4.5rem; text-align: right; white-space: nowrap; }
.inside { padding: .25rem 0 1.75rem; }
pre {
  white-space: pre-wrap;
  overflow-wrap: anywhere;
  margin: .4rem 0;
  line-height: 1.5;
  tab-size: 4;
}
.prompt {
  background: var(--wash);
  border-radius: 8px;
  padding: .75rem 1rem;
  margin-bottom: 1rem;
  max-height: none;
}
.prompt h3, .answer h3 { margin: 0 0 .25rem; }
.prompt p { font-size: .85rem; margin: 0 0 .25rem; }
.message h3 { color: var(--soft); font-weight: 400; }
.message + .message { margin-top: .9rem; }
.answers {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 1rem;
  align-items: start;
}
.answer {
  background: var(--card);
  border: 1px solid var(--rule);
  border-radius: 8px;
  padding: .8rem 1rem;
  min-width: 0;
}
.stack { min-width: 0; }
.again { margin-top: .5rem; font-size: .9rem; }
.again > summary, .reasoning > summary { color: var(--soft); font-size: .8125rem; }
.again .answer { margin-top: .6rem; }
.reasoning pre { color: var(--soft); border-left: 2px solid var(--rule); padding-left: .75rem; }
.facts, .note, .ids, .cut, .attached {
  font-size: .8125rem;
  color: var(--soft);
  font-variant-numeric: tabular-nums;
}
.facts { margin: 0 0 .6rem; }
.note.same { color: var(--ins-ink); }
.ids { margin: .8rem 0 0; }
.ids code { font-size: .75rem; }
.call { background: var(--wash); border-radius: 6px; padding: .5rem .7rem; }
.failed { color: var(--bad); }
del {
  background: var(--del);
  color: var(--del-ink);
  text-decoration: line-through;
  text-decoration-thickness: 1px;
  border-radius: 2px;
}
ins {
  background: var(--ins);
  color: var(--ins-ink);
  text-decoration: underline;
  text-decoration-thickness: 1px;
  text-underline-offset: .15em;
  border-radius: 2px;
}
.legend del, .legend ins { white-space: nowrap; }
.legend del, .legend ins { padding: 0 .25em; }
.method { color: var(--soft); font-size: .875rem; max-width: 52rem; padding-left: 1.1rem; }
.method li { margin: .25rem 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: .8125rem; }
:root {
  --m0: #0060a8;
  --m1: #b64300;
  --m2: #007355;
  --m3: #96348c;
  --m4: #7d5c00;
  --m5: #a8283f;
  --m6: #4a5a6a;
  --m7: #00718a;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --m0: #6fb4f0;
    --m1: #ff9a5c;
    --m2: #4fcfa4;
    --m3: #e097d8;
    --m4: #e3c04d;
    --m5: #ff8f9f;
    --m6: #b3c0cd;
    --m7: #5ccfe6;
  }
}
.m0 { --c: var(--m0); }
.m1 { --c: var(--m1); }
.m2 { --c: var(--m2); }
.m3 { --c: var(--m3); }
.m4 { --c: var(--m4); }
.m5 { --c: var(--m5); }
.m6 { --c: var(--m6); }
.m7 { --c: var(--m7); }
.mark { width: .72em; height: .72em; overflow: visible; margin-right: .4em; }
.mark path { fill: var(--c); }
.chart { display: block; width: 100%; height: auto; overflow: visible; }
.chart text {
  font-size: 11.5px;
  fill: var(--soft);
  paint-order: stroke;
  stroke: var(--card);
  stroke-width: 3;
  stroke-linejoin: round;
}
.chart .name { fill: var(--ink); font-weight: 600; }
.chart .value { fill: var(--ink); }
.chart .grid { stroke: var(--rule); fill: none; }
.chart .dots { fill: var(--c); fill-opacity: .65; stroke: var(--card); stroke-width: .6; }
.chart .solid { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.chart .interval {
  stroke: var(--c);
  stroke-width: 4;
}
.chart .middle { stroke: var(--ink); stroke-width: 2.2; }
.chart .late { stroke: var(--ink); stroke-width: 1.4; stroke-dasharray: 2.5 2; }
.chart .thin { stroke: var(--c); stroke-width: .8; stroke-opacity: .38; fill: none; }
.chart .bold { stroke: var(--c); stroke-width: 2.6; fill: none; stroke-linejoin: round; }
.chart .bars { stroke: var(--c); stroke-width: 1.6; stroke-opacity: .6; fill: none; }
.chart .lead { stroke: var(--soft); stroke-width: .6; fill: none; }
.chart .good { fill: var(--good); }
.chart .fair { fill: var(--fair); }
.chart .bad { fill: var(--bad); }
.chart .bad-words { fill: var(--bad); font-weight: 600; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  .verdict div { grid-template-columns: 1fr; }
  .verdict dt { font-size: .875rem; }
  table { font-size: .8125rem; }
  td, th { padding-left: .8rem; }
  thead th { min-width: 0; }
  .halves > .wide { flex-basis: 100%; }
  .request > summary { grid-template-columns: 1.4rem 1fr; gap: 0 .5rem; }
  .chips { grid-column: 2; justify-content: flex-start; }
  .chip { min-width: 0; }
  figure { padding: .85rem .6rem .75rem; }
  .chart text { font-size: 12.8px; }
}
@media print {
  :root { --paper: #fff; --wash: #f5f5f5; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 1.75rem; break-after: avoid; }
  figure, .verdict div, tr { break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  td, th, .rows thead th, .nowrap { white-space: normal; overflow-wrap: anywhere; }
  td, th { padding-left: .6rem; }
  td.words, thead th, .rows tbody th[scope=row] { min-width: 0; }
  .request::details-content, .fold::details-content {
    content-visibility: visible;
    block-size: auto;
  }
  .answer { break-inside: auto; }
}
"""
