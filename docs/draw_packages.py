"""Draws docs/images/packages.svg, the packages of hwr_ray and their imports: python docs/draw_packages.py

Each package stands one row above the highest package that it imports. An arrow from a package to another is an import.
Imports that follow from others are left out (transitive reduction).
"""

from pathlib import Path

import grimp
import networkx as nx

PICTURE = Path(__file__).parent / "images/packages.svg"
WIDTH, ROW, BOX = 980, 76, (120, 40)
X = {"tuning": 200, "training": 200, "evaluation": 780, "transcription": 780, "recognition": 490, "synthetic": 640}
X |= {"data": 640, "reporting": 640, "images": 640, "decoding": 260, "cluster": 880}
X |= {"model": 120, "text": 300, "files": 760}
"""Centers of the boxes, chosen so that no arrow runs behind a box."""
STYLE = """
  svg { --ink: #1d2126; --line: #8b96a3; --box: #dbe7f5; }
  @media (prefers-color-scheme: dark) { svg { --ink: #e6e9ed; --line: #76828f; --box: #24405e; } }
  text { font: 15px system-ui, sans-serif; fill: var(--ink); text-anchor: middle; }
  rect { fill: var(--box); stroke: var(--line); }
  line { stroke: var(--line); stroke-width: 1.4; }
  #tip path { fill: var(--line); }
"""


def imports() -> nx.DiGraph:
    """Returns the packages, with an edge from each to those that it imports and that do not follow from other edges."""
    modules = grimp.build_graph("hwr_ray")
    packages = [name for name in modules.find_children("hwr_ray") if modules.find_children(name)]
    graph = nx.DiGraph()
    graph.add_nodes_from(name.removeprefix("hwr_ray.") for name in packages)
    for one in packages:
        for other in packages:
            if one != other and modules.direct_import_exists(importer=one, imported=other, as_packages=True):
                graph.add_edge(one.removeprefix("hwr_ray."), other.removeprefix("hwr_ray."))
    return nx.transitive_reduction(graph)


def draw(graph: nx.DiGraph) -> str:
    """Returns the picture as SVG, the packages that import nothing at the bottom."""
    rows = [sorted(names) for names in nx.topological_generations(graph.reverse())]
    centers = {name: (X[name], ROW * (len(rows) - row - 0.5)) for row, names in enumerate(rows) for name in names}
    width, height = BOX
    boxes = [
        f'<rect x="{x - width / 2:.0f}" y="{y - height / 2:.0f}" width="{width}" height="{height}" rx="8"/>'
        f'<text x="{x:.0f}" y="{y + 5:.0f}">{name}</text>'
        for name, (x, y) in centers.items()
    ]
    arrows = []
    for name, other in sorted(graph.edges):
        (x0, y0), (x1, y1) = centers[name], centers[other]
        ends = f'x1="{x0:.0f}" y1="{y0 + height / 2:.0f}" x2="{x1:.0f}" y2="{y1 - height / 2:.0f}"'
        arrows.append(f'<line marker-end="url(#tip)" {ends}><title>{name} imports {other}</title></line>')
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(rows)}" role="img">',
            "<title>The packages of hwr_ray and their imports</title>",
            f"<style>{STYLE}</style>",
            f'<defs>{tip}<path d="M0 0 L8 4 L0 8 Z"/></marker></defs>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(imports()))
