// Python with the planner, beside the page, which stays responsive while it starts and plans.

import { loadPyodide } from "../planner/pyodide/pyodide.mjs";

const SOURCES = new URL("../planner/planner.zip", import.meta.url);

async function start() {
  const sources = fetch(SOURCES).then((response) => {
    if (!response.ok) throw new Error(`${SOURCES.pathname} is not there (${response.status})`);
    return response.arrayBuffer();
  });
  const [python, content] = await Promise.all([loadPyodide(), sources]);
  python.unpackArchive(content, "zip", { extractDir: "/planner" });
  return python.runPython(`
import sys
from pathlib import Path
sys.path.insert(0, "/planner")
from glm4v_magic.notebook.web_planner import WebPlanner
WebPlanner(Path("/planner/models.json").read_text(encoding="utf-8"))
`);
}

const starting = start();

onmessage = async ({ data }) => {
  try {
    const planner = await starting;
    postMessage({ number: data.number, ...JSON.parse(planner.answer(JSON.stringify(data.asked))) });
  } catch (error) {
    postMessage({ number: data.number, failure: String(error.message || error) });
  }
};
