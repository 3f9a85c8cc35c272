package rest

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/getmonroe/monroe/host"
)

// Problem is an error as a client gets it (RFC 9457), with a code for programs and
// a remedy for people.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Code   string `json:"code"`
	Remedy string `json:"remedy,omitempty"`
}

// Error implements error.
func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// What huma itself refuses becomes a problem like any other. NewError is the only way
// to tell it so.
func init() { huma.NewError = refuse }

func refuse(status int, msg string, errs ...error) huma.StatusError {
	p := &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: "REQUEST", Remedy: "correct the request; /openapi.json describes it"}
	details := []string{msg}
	for _, err := range errs {
		if err != nil {
			details = append(details, err.Error())
		}
	}
	p.Detail = strings.Join(details, "; ")
	if status == http.StatusRequestEntityTooLarge {
		p.Code, p.Remedy = "REQUEST_SIZE", "send less"
	}
	return p
}

func (p *Problem) write(w http.ResponseWriter) {
	b, err := json.Marshal(p)
	if err != nil {
		b = []byte("{}")
	}
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_, _ = w.Write(b) // the client may be gone
}

// problemOf is the one place where errors become answers. What carries no text for
// clients is reported to fail and answered without its cause.
func problemOf(err error, fail func(error)) *Problem {
	status := http.StatusInternalServerError
	for _, k := range []struct {
		err    error
		status int
	}{
		{host.ErrNotFound, http.StatusNotFound},
		{host.ErrInvalid, http.StatusUnprocessableEntity},
		{host.ErrForbidden, http.StatusForbidden},
		{host.ErrConflict, http.StatusConflict},
		{host.ErrTooLarge, http.StatusRequestEntityTooLarge},
		{host.ErrOverload, http.StatusServiceUnavailable},
	} {
		if errors.Is(err, k.err) {
			status = k.status
		}
	}
	p := &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status}
	if told := new(host.Problem); errors.As(err, &told) {
		p.Detail, p.Code, p.Remedy = told.Detail, told.Code, told.Remedy
		return p
	}
	if status == http.StatusNotFound {
		p.Detail, p.Code = "there is no such thing", "NOT_FOUND"
		return p
	}
	fail(err)
	p.Detail, p.Code, p.Remedy = "the daemon could not do it; its log says why", "INTERNAL", "look at the daemon's log"
	return p
}
