// Command connector is a plugin as a third party would write it: tickets of a small
// help desk. It needs no network: it says what it would ask, and reads the answer.
package main

import (
	"encoding/json"
	"net/url"

	"github.com/getmonroe/monroe/connectors/plugin"
)

// base is where the help desk is. The operator pins it, so it can be set when building:
//
//	go build -ldflags "-X main.base=https://desk.example.com"
var base = "https://desk.example.com"

func main() { plugin.ServeConnector(tickets{}) }

type tickets struct{}

type args struct {
	ID   string `json:"id"`
	Text string `json:"text,omitempty"`
}

func (tickets) Operations() []plugin.Operation {
	return []plugin.Operation{{
		Name: "tickets.read", Version: 1, Effect: "read", Replay: "pure", Summary: "Reads a ticket.",
		Args:  `{"type":"object","properties":{"id":{"type":"string"}},"required":["id"],"additionalProperties":false}`,
		Allow: []plugin.Pattern{{Method: "GET", URL: base + "/tickets/*"}},
	}, {
		Name: "tickets.comment", Version: 1, Effect: "send", Replay: "keyed", Summary: "Comments on a ticket.",
		Args:  `{"type":"object","properties":{"id":{"type":"string"},"text":{"type":"string"}},"required":["id","text"],"additionalProperties":false}`,
		Allow: []plugin.Pattern{{Method: "POST", URL: base + "/tickets/*/comments"}},
	}}
}

func (tickets) Plan(c plugin.Call) (plugin.Request, error) {
	var a args
	if err := json.Unmarshal(c.Args, &a); err != nil || a.ID == "" {
		return plugin.Request{}, plugin.ErrInvalid
	}
	at := base + "/tickets/" + url.PathEscape(a.ID)
	if c.Operation == "tickets.read" {
		return plugin.Request{Method: "GET", URL: at, Header: []plugin.Header{{Name: "Accept", Value: "application/json"}}}, nil
	}
	body, err := json.Marshal(map[string]string{"text": a.Text})
	return plugin.Request{Method: "POST", URL: at + "/comments", Header: []plugin.Header{{Name: "Content-Type", Value: "application/json"}}, Body: body}, err
}

func (tickets) Parse(c plugin.Call, a plugin.Answer) (any, error) {
	if a.Status == 404 {
		return nil, plugin.ErrNotFound
	}
	var t struct {
		Title string `json:"title"`
		Open  bool   `json:"open"`
	}
	if a.Status/100 != 2 || c.Operation == "tickets.read" && json.Unmarshal(a.Body, &t) != nil {
		return nil, plugin.ErrUpstream
	}
	if c.Operation == "tickets.read" {
		return t, nil
	}
	return map[string]bool{"commented": true}, nil
}
