package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
)

const (
	handshakeTimeout = 10 * time.Second
	maxAnswerHeader  = 64 << 10 // bytes
)

// http performs one request over a connection of its own. The transport alone is
// used, not a client: so there are no redirects, cookies or retries.
func (a *attempt) http(ctx context.Context, f *connectors.HTTPRequest) (*connectors.Answer, *abi.Denial) {
	var connected, overdue atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// It fires when TLS is finished and before the first byte of the request.
		GotConn: func(got httptrace.GotConnInfo) {
			if a.late() { // closed, nothing can be written to it any more
				overdue.Store(true)
				_ = got.Conn.Close()
				return
			}
			connected.Store(true)
		},
	})
	req, err := newRequest(ctx, f)
	if err != nil {
		return nil, abi.Deny(abi.Internal, "the stored request was refused: "+err.Error(), "")
	}
	if len(f.Body) > 0 {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(f.Body)), int64(len(f.Body))
	}
	var secret string
	if slot := f.Credential; slot != nil {
		if secret, err = a.credential(ctx, slot.Connection, originOf(f)); err != nil {
			return nil, a.failed(err, false)
		}
		req.Header.Set(slot.Header, slot.Prefix+secret)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	t := &http.Transport{
		Proxy: nil, DisableKeepAlives: true, DisableCompression: true, Protocols: &protocols,
		TLSHandshakeTimeout: handshakeTimeout, MaxResponseHeaderBytes: maxAnswerHeader,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.e.c.RootCAs},
		DialContext: func(ctx context.Context, _, hostport string) (net.Conn, error) {
			conn, err := a.dial(ctx, hostport, false)
			if err != nil {
				return nil, err
			}
			return &counted{conn, &a.in, &a.out}, nil
		},
	}
	a.close = append(a.close, t.CloseIdleConnections)
	resp, err := t.RoundTrip(req)
	if err != nil && overdue.Load() {
		err = errLate
	}
	if err != nil {
		return nil, a.failed(err, connected.Load())
	}
	a.close = append(a.close, func() { _ = resp.Body.Close() })
	header := map[string][]string{}
	for name, values := range resp.Header {
		if name == "Set-Cookie" {
			continue // a session is a credential, and the guest has none
		}
		for _, v := range values {
			header[name] = append(header[name], scrubText(v, secret))
		}
	}
	return &connectors.Answer{
		Status: resp.StatusCode, Header: header, Body: scrub(a.limit(resp.Body), secret), Emit: a.emit,
	}, nil
}
