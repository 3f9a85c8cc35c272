package abi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// DecodeArgs reads the arguments of an op or operation strictly into v, a pointer
// to a struct: an unknown, repeated or differently cased field is an error at any
// depth, as it would otherwise be ignored or taken for another one silently.
func DecodeArgs(args json.RawMessage, v any) *Denial {
	canon, err := Canonical(args)
	if err != nil {
		return Deny(Invalid, "args: "+err.Error(), "")
	}
	const remedy = "compare the arguments with tool.list or the ABI specification"
	if why := exactFields(canon, reflect.TypeOf(v), "args"); why != "" {
		return Deny(Invalid, why, remedy)
	}
	if err := json.Unmarshal(canon, v); err != nil {
		return Deny(Invalid, "args: "+err.Error(), remedy)
	}
	return nil
}

// exactFields says which member of the canonical JSON has no field of exactly its
// name in t. encoding/json alone would match names without regard to case, and by
// Unicode folding at that. A value of the wrong type is left for it to report.
func exactFields(canon []byte, t reflect.Type, at string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return ""
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		var members map[string]json.RawMessage
		if json.Unmarshal(canon, &members) != nil {
			return ""
		}
		var fields map[string]reflect.Type
		if t.Kind() == reflect.Struct {
			fields = fieldsOf(t)
		}
		for _, name := range sortedKeys(members) {
			inner, known := fields[name]
			if t.Kind() == reflect.Map {
				inner, known = t.Elem(), true
			}
			if !known {
				return unknownField(name, fields, at)
			}
			if why := exactFields(members[name], inner, at+"."+name); why != "" {
				return why
			}
		}
	case reflect.Slice, reflect.Array:
		var items []json.RawMessage
		if json.Unmarshal(canon, &items) != nil {
			return ""
		}
		for i, item := range items {
			if why := exactFields(item, t.Elem(), fmt.Sprintf("%s[%d]", at, i)); why != "" {
				return why
			}
		}
	}
	return ""
}

func unknownField(name string, fields map[string]reflect.Type, at string) string {
	for _, known := range sortedKeys(fields) {
		if bytes.EqualFold([]byte(name), []byte(known)) {
			return fmt.Sprintf("%s: the field %q must be spelled %q", at, name, known)
		}
	}
	return fmt.Sprintf("%s: unknown field %q", at, name)
}

// fieldsOf lists the JSON names of a struct, embedded structs included.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() || f.Anonymous && name == "" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		fields[name] = f.Type
	}
	return fields
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
