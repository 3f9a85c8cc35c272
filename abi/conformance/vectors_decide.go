package conformance

// asking is a manifest that asks for one of each.
const asking = `{"abi":1,"name":"a","version":"1","ops":["kv.get","tool.call","send","http.fetch"],"operations":[` +
	`{"operation":"files.read","effect":"read","resource":"files:docs/**"},` +
	`{"operation":"files.write","effect":"state","resource":"files:out/**"},` +
	`{"operation":"mail.send","effect":"send","resource":"mail:ann@example.com"},` +
	`{"operation":"http.fetch","effect":"read","resource":"https://example.com/**"},` +
	`{"operation":"llm.chat","effect":"metered","resource":"model:*"}]}`

// decideVectors hold the host to the intersection of 4.2: each part is left out in its turn.
func decideVectors() (v []Vector) {
	everything := []Line{
		{Operation: "files.read", Resource: "files:**"},
		{Operation: "files.list", Resource: "files:**"},
		{Operation: "mail.send", Resource: "mail:*"},
		{Operation: "http.fetch", Resource: "https://example.com/**"},
		{Operation: "http.fetch", Resource: "https://example.org/**"},
		{Operation: "llm.chat", Resource: "model:*"},
	}
	docs := []Line{{Operation: "files.read", Resource: "files:docs/**"}}
	add := func(name string, manifest string, d Decision, decided string) {
		v = append(v, Vector{Name: "decide: " + name, Clauses: "4.2", Manifest: []byte(manifest), Decide: &d, Want: []string{decided}})
	}
	const yes, no = "decided", "decided SCOPE"
	read := func(resource string, grants, ceiling []Line) Decision {
		return Decision{Op: "tool.call", Operation: "files.read", Effect: "read", Resource: resource, Grants: grants, Ceiling: ceiling}
	}
	add("an op that is listed", asking, Decision{Op: "kv.get", Effect: "state"}, yes)
	add("an op that is not listed", asking, Decision{Op: "kv.put", Effect: "state"}, no)
	add("asked for and granted", asking, read("files:docs/a", docs, nil), yes)
	add("asked for, granted and below the ceiling", asking, read("files:docs/a", docs, docs), yes)
	add("asked for and not granted", asking, read("files:docs/a", nil, nil), no)
	add("asked for and another operation granted", asking, read("files:docs/a", []Line{{Operation: "files.list", Resource: "files:docs/**"}}, nil), no)
	add("asked for and another resource granted", asking, read("files:docs/a", []Line{{Operation: "files.read", Resource: "files:docs/b"}}, nil), no)
	add("granted and not asked for", asking, read("files:other/a", everything, nil), no)
	add("granted and another operation asked for", asking, Decision{Op: "tool.call", Operation: "files.list", Effect: "read", Resource: "files:docs/a", Grants: everything}, no)
	add("granted to another module of the name", asking, read("files:docs/a", []Line{{Operation: "files.read", Resource: "files:docs/**", Other: true}}, nil), no)
	add("granted beyond the ceiling", asking, read("files:docs/a", docs, []Line{{Operation: "files.read", Resource: "files:docs/b"}}), no)
	add("the ceiling alone", asking, read("files:docs/a", nil, everything), no)
	mail := Decision{Op: "send", Operation: "mail.send", Effect: "send", Resource: "mail:ann@example.com", Grants: everything}
	add("a person who may", asking, mail, yes)
	mail.Looks = true
	add("a person who may not", asking, mail, no)
	fetch := Decision{Op: "http.fetch", Operation: "http.fetch", Effect: "read", Resource: "https://example.com/a", Grants: everything}
	add("http.fetch, the op and its resource listed", asking, fetch, yes)
	fetch.Resource = "https://example.org/a"
	add("http.fetch, the op and another resource listed", asking, fetch, no)
	add("llm.chat, the resource listed and not the op", asking,
		Decision{Op: "llm.chat", Operation: "llm.chat", Effect: "metered", Resource: "model:small", Grants: everything}, no)
	add("a manifest that asks for nothing", `{"abi":1,"name":"a","version":"1"}`, read("files:docs/a", everything, everything), no)
	return v
}
