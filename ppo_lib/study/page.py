"""The report's HTML frame: one column on a phone, two on a laptop, light or dark as the reader's system is."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@: report</title>
<style>
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1b1f24; --dim: #5a6572; --line: #d9dee4;
  --train: #0072b2; --unseen: #c24f00; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --card: #1e2329; --text: #e8ebee; --dim: #a3adb8; --line: #353c45;
    --train: #56b4e9; --unseen: #f0883e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 70rem; background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
.lead { font-size: 1.1rem; margin: 0 0 1rem; max-width: 44rem; }
.note { color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--line); border-radius: .5rem;
  padding: .6rem .8rem; display: flex; flex-direction: column; }
.tile.train { border-top-color: var(--train); }
.tile.unseen { border-top-color: var(--unseen); }
.tile span { font-size: .85rem; color: var(--dim); }
.tile b { font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile.train b { color: var(--train); }
.tile.unseen b { color: var(--unseen); }
.tile small { font-size: .78rem; color: var(--dim); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem;
  align-items: start; margin-top: 1.6rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; }
figure img, figure video { display: block; width: 100%; height: auto; border-radius: .3rem; }
figcaption { font-size: .85rem; color: var(--dim); padding: .5rem .2rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--dim); font-weight: 600; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem; font-size: .82rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--dim); }
p { max-width: 46rem; }
</style>
</head>
<body>
<h1>@TITLE@</h1>
@BODY@
</body>
</html>
"""
