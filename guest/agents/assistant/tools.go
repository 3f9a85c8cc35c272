package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/guest"
)

// toolbox is what the run is granted, in the form that models take.
type toolbox struct {
	chat   []guest.ChatTool
	byName map[string]abi.Tool
}

// mostTools is how many tools a model is offered; beyond it they confuse more
// than they help, and hosts refuse more than 128.
const mostTools = 100

// offer names the tools. Models take no dots: files.read becomes files_read.
func offer(granted []abi.Tool) *toolbox {
	b := &toolbox{byName: map[string]abi.Tool{}}
	granted = slices.Clone(granted)
	slices.SortStableFunc(granted, func(x, y abi.Tool) int { return strings.Compare(x.Operation, y.Operation) })
	for _, t := range granted {
		if t.Operation == guest.LLMChat || len(b.chat) == mostTools {
			continue // the model is not offered to itself
		}
		stem := badName.ReplaceAllString(t.Operation, "_")
		if stem == "" || !isLetter(stem[0]) {
			stem = "x" + stem
		}
		stem = stem[:min(len(stem), 60)]
		name := stem
		for n := 2; b.byName[name].Operation != ""; n++ {
			name = fmt.Sprintf("%s_%d", stem, n)
		}
		b.byName[name] = t
		params := t.Parameters
		if !json.Valid(params) || params[0] != '{' {
			params = json.RawMessage(`{"type":"object"}`)
		}
		b.chat = append(b.chat, guest.ChatTool{Name: name, Description: describe(t), Parameters: params})
	}
	return b
}

// describe adds to the description what a call does and where it may: the model
// then asks for less that would be refused.
func describe(t abi.Tool) string {
	d := strings.TrimSuffix(strings.TrimSpace(t.Description), ".") + "."
	if t.Effect.Asks() {
		d += " This acts outside (" + string(t.Effect) + "): a person may be asked first."
	}
	if len(t.Scopes) > 0 {
		var s []string
		for _, p := range t.Scopes[:min(len(t.Scopes), 10)] {
			s = append(s, string(p))
		}
		d += " Allowed for: " + strings.Join(s, ", ")
	}
	return cut(d, 1000)
}

func (b *toolbox) names() []string {
	var names []string
	for _, t := range b.chat {
		names = append(names, t.Name)
	}
	return names
}

// call makes a call by the op that its operation is reached by.
func (b *toolbox) call(r *guest.Run, t abi.Tool, args json.RawMessage) (json.RawMessage, error) {
	var out json.RawMessage
	var err error
	switch {
	case t.Operation == guest.HTTPFetch:
		err = r.Call(abi.OpHTTPFetch, args, &out)
	case t.Effect == abi.EffectRead:
		err = r.Tool(t.Operation, args, &out)
	default:
		err = r.Send(t.Operation, args, &out)
	}
	return out, err
}

// arguments turns what a model wrote into what the ABI takes, or says what is
// wrong with it in words that the model can act on. The ABI knows no fractions;
// models write 5.0 for 5, which is meant well and is put right.
func arguments(text string) (args json.RawMessage, why string) {
	if strings.TrimSpace(text) == "" {
		return json.RawMessage("{}"), ""
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, "they are not JSON (" + cut(err.Error(), 200) + ")"
	}
	if _, err := d.Token(); err == nil {
		return nil, "there is text after the JSON object"
	}
	if _, ok := v.(map[string]any); !ok {
		return nil, "they are not a JSON object"
	}
	v, why = integers(v, "")
	if why != "" {
		return nil, why
	}
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(v); err != nil {
		return nil, cut(err.Error(), 200)
	}
	canon, err := abi.Canonical(buf.Bytes())
	if err != nil {
		return nil, cut(err.Error(), 200)
	}
	return canon, ""
}

// integers replaces every number by the integer that it is.
func integers(v any, at string) (any, string) {
	switch x := v.(type) {
	case map[string]any:
		for _, k := range sortedKeys(x) {
			y, why := integers(x[k], at+"/"+k)
			if why != "" {
				return nil, why
			}
			x[k] = y
		}
	case []any:
		for i := range x {
			y, why := integers(x[i], fmt.Sprintf("%s/%d", at, i))
			if why != "" {
				return nil, why
			}
			x[i] = y
		}
	case json.Number:
		if n, err := strconv.ParseInt(x.String(), 10, 64); err == nil && n != 0 {
			return n, ""
		}
		f, err := strconv.ParseFloat(x.String(), 64)
		if err != nil || f != math.Trunc(f) || math.Abs(f) > abi.MaxSafeInteger {
			return nil, fmt.Sprintf("%s is %s, and only integers within 2^53 are allowed; give a whole number, or a string if the tool takes one", cut(at, 100), cut(x.String(), 40))
		}
		return int64(f), ""
	}
	return v, ""
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
