"""The report's style sheet: light by default, dark where the reader's system is, light ink on paper. Text has a contrast of 4.5 or more."""

LIGHT = """
--paper:#fff;--panel:#f5f7f9;--ink:#1a1a1a;--soft:#555b61;--faint:#d9dee3;--accent:#0072b2;--all:#0072b2;--own:#c04f00;--pool:#000;
--bundle:#9aa0a6;--bar:#0072b2;--less:#c04f00;--mark:#000;
--s0:#e69f00;--s1:#56b4e9;--s2:#009e73;--s3:#d55e00;--s4:#cc79a7;
--h0:#f2f6fa;--h1:#cfe3f2;--h2:#9ecae8;--h3:#6aaedd;--h4:#e69f00;
"""
DARK = """
--paper:#14181c;--panel:#1d2329;--ink:#eceff1;--soft:#aab4bd;--faint:#39424a;--accent:#7cc4f2;--all:#56b4e9;--own:#ff9a57;--pool:#fff;
--bundle:#6f7982;--bar:#56b4e9;--less:#ff9a57;--mark:#fff;
--s0:#e69f00;--s1:#56b4e9;--s2:#2cc295;--s3:#f07a2b;--s4:#dd95bd;
--h0:#20272e;--h1:#22405a;--h2:#255a86;--h3:#2c78b4;--h4:#a86b00;
"""
CSS = (
    f":root{{color-scheme:light dark;{LIGHT}}}\n@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}\n"
    f"@media print{{:root{{color-scheme:light;{LIGHT}}}}}"
    """
*{box-sizing:border-box}
html{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Helvetica,Arial,sans-serif;color:var(--ink);background:var(--paper);
  -webkit-text-size-adjust:100%}
body{max-width:62rem;margin:0 auto;padding:2rem 1.25rem 3rem;overflow-wrap:break-word}
header{border-top:.35rem solid var(--accent);padding-top:1rem}
h1{font-size:1.9rem;line-height:1.2;margin:.1rem 0 .3rem}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 .8rem;padding-bottom:.25rem;border-bottom:1px solid var(--faint)}
p{margin:.6rem 0;max-width:46rem}
.kicker{text-transform:uppercase;letter-spacing:.08em;font-size:.8rem;color:var(--soft);margin:0}
.reach{stroke:var(--accent);stroke-width:2}.point{fill:var(--accent)}
.soft,figcaption,caption,footer{color:var(--soft)}
.lead{font-size:1.12rem}
a{color:var(--accent)}
nav ul{list-style:none;margin:1rem 0 0;padding:.7rem 0;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;font-size:.9rem;
  border-top:1px solid var(--faint);border-bottom:1px solid var(--faint)}
section{margin:2.4rem 0 0}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{font:.88em/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(8rem,13rem) minmax(0,1fr);gap:.35rem 1rem;margin:.6rem 0}
dt{color:var(--soft)}
dd{margin:0;min-width:0;overflow-wrap:anywhere}
.tiles{grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem;margin:1.2rem 0}
.tiles>div{background:var(--panel);border-radius:.5rem;padding:.8rem 1rem}
.tiles dt{font-size:.85rem}
.tiles strong{display:block;font-size:1.9rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tiles span{font-size:.82rem;color:var(--soft)}
figure{margin:1rem 0}
figcaption{font-size:.88rem;max-width:46rem}
.scroll{overflow:auto;max-height:34rem;margin:.8rem 0}
figure .scroll{max-height:none;margin:0}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;font-size:.9rem;min-width:100%}
caption{text-align:left;font-size:.88rem;padding:0 0 .4rem}
caption span{display:inline-block;max-width:min(46rem,calc(100vw - 2.6rem));position:sticky;left:0}
time,.whole{white-space:nowrap}
th,td{padding:.32rem .7rem .32rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--faint);font-weight:400;
  overflow-wrap:anywhere;min-width:4.2rem}
thead th{color:var(--soft);font-weight:600;position:sticky;top:0;background:var(--paper);vertical-align:bottom;overflow-wrap:normal}
tbody th{font-weight:600;min-width:6.5rem}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
thead .n{white-space:normal}
td:not(.n){min-width:7rem}
svg{display:block;width:100%;height:auto;max-width:45rem}
.wide svg{min-width:36rem}
.square svg{max-width:27rem;min-width:19rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 2rem;align-items:start}
svg text{font-size:13px;fill:var(--ink)}
svg text.soft{fill:var(--soft)}
svg text.bold{font-weight:700}
polyline,line{fill:none;stroke-width:1.4}
.grid{stroke:var(--faint);stroke-width:1}
.axis{stroke:var(--soft)}
.all{stroke:var(--all);stroke-width:3;stroke-linejoin:round}
.bundle{stroke:var(--bundle);stroke-width:.8;stroke-opacity:.75}
.s0{stroke:var(--s0)}.s1{stroke:var(--s1)}.s2{stroke:var(--s2)}.s3{stroke:var(--s3)}.s4{stroke:var(--s4)}
.thin{stroke-width:1.7}
.dashed{stroke-dasharray:6 3}
.lead{stroke-width:1;stroke-opacity:.8}
circle.all{fill:var(--all)}circle.bundle{fill:var(--bundle)}
circle.s0{fill:var(--s0)}circle.s1{fill:var(--s1)}circle.s2{fill:var(--s2)}circle.s3{fill:var(--s3)}circle.s4{fill:var(--s4)}
.champion{stroke:var(--ink);stroke-dasharray:2 3}
.star{fill:var(--ink);stroke:var(--paper)}
.span{stroke:var(--faint);stroke-width:3}
.own{fill:var(--paper);stroke:var(--own);stroke-width:2.2}
.ours{fill:var(--all)}
.pool{stroke:var(--pool);stroke-width:2.4}
.error{stroke:var(--all);stroke-width:1.6}
.perfect{stroke:var(--soft);stroke-dasharray:6 4}
.bar{fill:var(--bar)}
.bar.less{fill:url(#less);stroke:var(--less)}
.hatch{stroke:var(--less);stroke-width:4}
.cell{fill:var(--h0)}.cell.none{fill:none;stroke:var(--faint)}
.cell.h1{fill:var(--h1)}.cell.h2{fill:var(--h2)}.cell.h3{fill:var(--h3)}.cell.h4{fill:var(--h4)}
.mark{fill:var(--mark)}
.home{fill:none;stroke:var(--ink);stroke-width:2}
footer{margin-top:3rem;padding-top:.8rem;border-top:1px solid var(--faint);font-size:.88rem}
@media (max-width:34rem){dl:not(.tiles){grid-template-columns:1fr}dl:not(.tiles) dd{margin-bottom:.5rem}h1{font-size:1.5rem}}
@page{margin:14mm 13mm 16mm}
@media print{
html{font-size:10.5pt}body{max-width:none;padding:0}nav{display:none}
.scroll{overflow:visible;max-height:none}.wide svg,.square svg{min-width:0}
.wide svg{max-width:17cm}.square svg{max-width:9cm}
table{font-size:8.5pt;width:100%}th,td,td:not(.n),tbody th{min-width:0;padding-right:.4rem}thead{display:table-header-group}thead th{position:static}
h2{break-after:avoid}figure,.tiles>div,tr,li{break-inside:avoid}section{margin-top:1.6rem}p{orphans:3;widows:3}
.tiles>div{border:1px solid var(--faint);background:none}
.tiles{grid-template-columns:repeat(4,1fr)}.pair{grid-template-columns:9.5cm 1fr}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
)
