// In front of the theme's worker of the search: a query is words, as people paste them.
//
// Lunr.js takes some characters for operators. A term behind a hyphen is one that must not be there,
// and one behind two, as every option is written, is an error for which the theme shows nothing.
addEventListener("message", event => {
  const query = 2; // SearchMessageType.QUERY of Material for MkDocs
  if (event.data.type === query) event.data.data = words(event.data.data);
});

function words(query) {
  const all = query.trim();
  const plain = all.replace(/[-+*~^:"\\]+/g, " ").trim();
  return /^"[^"]+"$/.test(all) ? `"${plain}"` : plain; // all of them must be there
}
