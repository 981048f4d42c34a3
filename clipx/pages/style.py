"""The look of all pages: colours that are legible in light and dark, type, tables, charts, contact sheets."""

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "panel": "#f5f6f8",
    "ink": "#1c2024",
    "quiet": "#57606a",
    "rule": "#d5dae0",
    "link": "#0757b0",
    "right": "#11632b",
    "wrong": "#b3123a",
    "heat": "#0757b0",
    "s0": "#0757b0",
    "s1": "#b84300",
    "s2": "#00704f",
    "s3": "#8f3f86",
    "s4": "#7a5c00",
    "s5": "#b3123a",
    "s6": "#0a7089",
    "s7": "#545d68",
}
"""Colours of the light scheme; `s0` and on are those of series, told apart by the colour-blind too."""

DARK: Mapping[str, str] = {
    "paper": "#15181c",
    "panel": "#1e2227",
    "ink": "#e7e9ec",
    "quiet": "#a3acb6",
    "rule": "#3a4149",
    "link": "#74b3ff",
    "right": "#67cf86",
    "wrong": "#ff8da3",
    "heat": "#74b3ff",
    "s0": "#62a9ff",
    "s1": "#ff9d57",
    "s2": "#46cba0",
    "s3": "#e39bd6",
    "s4": "#e2bd4a",
    "s5": "#ff8da3",
    "s6": "#6fd0ea",
    "s7": "#b4bcc6",
}
"""Colours of the dark scheme."""

NUM_SERIES = sum(name.startswith("s") for name in LIGHT)
"""Colours of series; further series take them again, with dashes."""


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in colours.items())


_LAYOUT = """
*{box-sizing:border-box}
html{background:var(--paper);color:var(--ink);-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{max-width:76rem;margin:0 auto;padding:2rem clamp(1rem,4vw,2.5rem) 4rem;
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:1.25rem;line-height:1.3;margin:3rem 0 .75rem;padding-top:.75rem;border-top:1px solid var(--rule)}
h4{font-size:.95rem;margin:1.25rem 0 .25rem;font-weight:600}
h3{font-size:1.05rem;margin:1.75rem 0 .5rem}
h2,h3{overflow-wrap:anywhere}
p{max-width:46rem;margin:.5rem 0;overflow-wrap:anywhere}
a{color:var(--link)}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.875em}
pre{background:var(--panel);padding:.75rem 1rem;overflow-x:auto;border-radius:6px;line-height:1.45}
.subtitle,.quiet{color:var(--quiet)}
.quiet{font-size:.875rem}
nav ul{list-style:none;margin:1rem 0 0;padding:0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
details{margin:.75rem 0}
summary{cursor:pointer;color:var(--link);overflow-wrap:anywhere}
.alert{border-left:4px solid var(--wrong);background:var(--panel);padding:.5rem 1rem;border-radius:0 6px 6px 0}
"""

_TABLES = """
.scroll{overflow-x:auto;margin:.75rem 0;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--quiet);padding:0 0 .4rem;font-size:.875rem}
th,td{padding:.35rem .9rem .35rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--rule);
max-width:34rem;overflow-wrap:break-word}
thead th{color:var(--quiet);font-weight:600;border-bottom-width:2px;vertical-align:bottom}
tbody th{font-weight:500}
td.n,th.n{text-align:right;white-space:nowrap}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.75rem;margin:1rem 0;padding:0}
.facts div{background:var(--panel);border-radius:6px;padding:.6rem .8rem}
.facts dt{color:var(--quiet);font-size:.8rem;line-height:1.3;overflow-wrap:anywhere}
.facts dd{margin:.15rem 0 0;font-size:1.15rem;line-height:1.3;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
"""

_CHARTS = """
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:1.5rem 2rem;margin:1rem 0}
figure{margin:0}
figcaption{font-weight:600;font-size:.95rem;margin-bottom:.2rem;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto;max-width:52rem;color:var(--ink)}
svg text{fill:var(--quiet);font-size:12.5px;font-family:inherit;font-variant-numeric:tabular-nums}
svg .grid{stroke:var(--rule);stroke-width:1}
svg .axis{stroke:var(--quiet);stroke-width:1}
svg .line{fill:none;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}
svg .faint{opacity:.45}
svg .dot{stroke:var(--paper);stroke-width:1}
svg .band{opacity:.22;stroke:none}
svg .mark{stroke:var(--quiet);stroke-width:1;stroke-dasharray:3 3}
svg .rest{fill:var(--quiet);opacity:.5}
svg .heat{fill:var(--heat)}
svg .cell{fill:var(--panel)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin:.3rem 0 0;padding:0;font-size:.85rem}
.legend li{overflow-wrap:anywhere;min-width:0}
.legend svg{display:inline-block;width:1.6rem;height:.7rem;margin-right:.4rem;vertical-align:baseline}
.legend svg.short{width:1rem}
.note{color:var(--quiet);font-size:.8rem;margin:.2rem 0 0}
"""

_SHEETS = """
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(10.5rem,44%),1fr));gap:1.25rem 1rem;margin:1rem 0}
.cell{break-inside:avoid;min-width:0;font-size:.85rem;line-height:1.4}
.frame{background:var(--panel);border:1px solid var(--rule);border-radius:6px;height:11rem;display:flex;
align-items:center;justify-content:center;overflow:hidden;margin-bottom:.4rem}
.frame img{width:100%;height:100%;object-fit:contain}
.frame .quiet{padding:.5rem;text-align:center}
.cell.right .frame{border:2px solid var(--right)}
.cell.wrong .frame{border:2px solid var(--wrong)}
.cell b{display:block;font-weight:600;overflow-wrap:anywhere}
.cell p{margin:0;overflow-wrap:anywhere}
.map{position:relative;background:var(--panel);border-radius:6px;max-width:52rem;overflow:hidden}
.map span{position:absolute;width:7%}
.map img{width:100%;height:auto;border-radius:2px;display:block}
.verdict{font-weight:600}
.verdict.right{color:var(--right)}
.verdict.wrong{color:var(--wrong)}
img{image-rendering:auto;vertical-align:middle}
"""

_NARROW = """
@media (max-width:34rem){
body{padding:1.25rem 1rem 3rem}
.plot text{font-size:16px}
.facts{grid-template-columns:repeat(auto-fill,minmax(8rem,1fr));gap:.5rem}
}
"""

_PRINT = """
@media print{
body{max-width:none;padding:0;font-size:10pt}
nav{display:none}
.scroll{overflow:visible}
figure,tr,.cell,.facts div{break-inside:avoid}
h2,h3{break-after:avoid}
}
"""

_SERIES = "".join(f".s{i}{{stroke:var(--s{i});fill:var(--s{i})}}" for i in range(NUM_SERIES))

STYLE = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    f"@media print{{:root{{{_variables(LIGHT)}}}}}"
    f"{_LAYOUT}{_TABLES}{_SERIES}{_CHARTS}{_SHEETS}{_NARROW}{_PRINT}"
)
