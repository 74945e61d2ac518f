// JupyterLab and Notebook 7, which load this as it is: a container of webpack's module federation.
//
// On lines of ours the kernel offers what fits. The front end has a completer of its own that adds
// every word of the cell, and which no kernel can switch off; here it adds nothing on these lines, and
// what it always does on all others.
(() => {
  const CELL = /^\n*%%glm4v\s/;
  const LINE = /^\s*(?:[\p{L}\p{N}_\s,.*[\]'"()]+=\s*)?%glm4v\s/u;

  const isOurs = ({ text, offset }) => {
    const typed = text.slice(0, offset);
    return CELL.test(typed) || LINE.test(typed.slice(typed.lastIndexOf("\n") + 1));
  };

  const keepToOthers = (words) => {
    const fetch = words.fetch.bind(words);
    words.fetch = (request, ...rest) =>
      isOurs(request)
        ? Promise.resolve({ start: request.offset, end: request.offset, items: [] })
        : fetch(request, ...rest);
  };

  let scope = {};

  const plugin = async () => {
    const [completer] = Object.values(scope["@jupyterlab/completer"]);
    const { ICompletionProviderManager } = (await completer.get())();
    return {
      id: "glm4v-magic:completer",
      description: "Offers on lines of %glm4v what the kernel does, and nothing else.",
      autoStart: true,
      optional: [ICompletionProviderManager],
      activate: (app, manager) => {
        // Not awaited: the application is restored once all plugins are there.
        void app.restored.then(() => {
          const words = manager?.getProviders?.().get("CompletionProvider:context");
          if (words) keepToOthers(words);
        });
      },
    };
  };

  globalThis._JUPYTERLAB ??= {};
  globalThis._JUPYTERLAB["glm4v-magic"] = {
    init: (shared) => {
      scope = shared;
    },
    get: async () => {
      const made = await plugin();
      return () => ({ __esModule: true, default: made });
    },
  };
})();
