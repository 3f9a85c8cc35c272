package llm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strconv"
	"strings"

	"github.com/openai/openai-go/v3"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/connectors"
	"github.com/getmonroe/monroe/connectors/capture"
)

// ctx is used where the SDK asks for a context although nothing is sent.
func ctx() context.Context { return context.Background() }

// Parse lets the SDK read the streamed answer, against the replaying transport.
func (l *LLM) Parse(ctx context.Context, c connectors.Call, p connectors.Plan, ans *connectors.Answer) (connectors.Result, *abi.Denial) {
	a, price, d := l.read(c)
	if d != nil {
		return connectors.Result{}, d
	}
	if p.Frozen.HTTP == nil {
		return connectors.Result{}, abi.Deny(abi.Internal, "the answer is not that of a model", "")
	}
	if ans.Status != http.StatusOK {
		return connectors.Result{}, refused(ans)
	}
	var acc openai.ChatCompletionAccumulator
	var usage *Usage
	var cost *abi.MicroUSD
	var id string
	full := true
	body := &watched{Reader: ans.Body}
	watchedAnswer := *ans
	watchedAnswer.Body = body
	err := capture.Replay(l.options(), p.Frozen.HTTP, &watchedAnswer, func(client *http.Client, key string) error {
		service, params := l.sdk(a, client, key)
		stream := service.NewStreaming(ctx, params)
		defer func() { _ = stream.Close() }()
		for stream.Next() {
			chunk := stream.Current()
			if full = full && acc.AddChunk(chunk); !full {
				break
			}
			if id == "" {
				id = chunk.ID
			}
			if len(chunk.Choices) > 0 && chunk.Choices[0].Index == 0 && chunk.Choices[0].Delta.Content != "" {
				ans.Emit(chunk.Choices[0].Delta.Content)
			}
			if chunk.JSON.Usage.Valid() && chunk.Usage.JSON.CompletionTokens.Valid() && chunk.Usage.JSON.PromptTokens.Valid() {
				usage = &Usage{InputTokens: chunk.Usage.PromptTokens, OutputTokens: chunk.Usage.CompletionTokens}
				cost = l.cost(chunk.Usage.JSON.ExtraFields["cost"].Raw(), *usage, price)
			}
		}
		return stream.Err()
	})
	if err == nil {
		err = body.err // the SDK takes an early end for the end
	}
	if errors.Is(err, capture.ErrRefused) {
		return connectors.Result{}, &abi.Denial{Code: abi.Internal, Reason: "the model's answer does not belong to the request", Effect: abi.OutcomeSent}
	}
	if err != nil || !full || len(acc.Choices) == 0 || acc.Choices[0].FinishReason == "" {
		return connectors.Result{}, broken(err)
	}
	return connectors.Result{
		Reply: reply(a, &acc, usage, cost), Cost: cost, ProviderID: printable(id),
		Provenance: connectors.Provenance{Readers: []string{connectors.Everyone}, Origins: p.Resources},
	}, nil
}

func reply(a *ChatArgs, acc *openai.ChatCompletionAccumulator, usage *Usage, cost *abi.MicroUSD) ChatReply {
	choice := acc.Choices[0]
	m := Message{Role: "assistant", Content: choice.Message.Content}
	if m.Content == "" {
		m.Content = choice.Message.Refusal
	}
	for _, t := range choice.Message.ToolCalls {
		m.ToolCalls = append(m.ToolCalls, ToolCall{
			ID: t.ID, Name: a.guestName(t.Function.Name), Arguments: t.Function.Arguments,
		})
	}
	return ChatReply{Message: m, FinishReason: choice.FinishReason, Usage: usage, CostMicroUSD: cost}
}

// cost prefers what the provider says it took over what the tokens should cost.
func (l *LLM) cost(stated string, u Usage, price Price) *abi.MicroUSD {
	if stated != "" && stated != "null" && !price.Free {
		return parseUSD(stated) // unreadable means unknown, not computed
	}
	if u.InputTokens < 0 || u.OutputTokens < 0 {
		return nil
	}
	m := price.of(u.InputTokens, u.OutputTokens)
	return &m
}

// parseUSD reads dollars as decimal text and rounds up once; nil is unreadable.
func parseUSD(s string) *abi.MicroUSD {
	if mantissa, exponent, ok := strings.Cut(strings.ToLower(s), "e"); len(s) > 64 || mantissa == "" || ok && len(exponent) > 3 {
		return nil // a huge exponent would cost memory
	}
	if strings.ContainsAny(s, "/_xXpPoObB") {
		return nil
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok || r.Sign() < 0 {
		return nil
	}
	r.Mul(r, big.NewRat(int64(abi.USD), 1))
	n := new(big.Int).Add(r.Num(), new(big.Int).Sub(r.Denom(), big.NewInt(1)))
	n.Quo(n, r.Denom())
	if !n.IsInt64() || n.Int64() > 1<<53 {
		return nil
	}
	m := abi.MicroUSD(n.Int64())
	return &m
}

// refused maps the provider's refusal. Below 500 nothing was computed, so nothing
// was charged. The provider's words stay out of the reason: they can echo the
// prompt.
func refused(ans *connectors.Answer) *abi.Denial {
	switch s := ans.Status; {
	case s == http.StatusUnauthorized:
		return abi.Deny(abi.ConnectorRevoked, "the model provider does not accept the workspace's key", "connect the model provider again")
	case s == http.StatusPaymentRequired:
		return abi.Deny(abi.Budget, "the account at the model provider has no credit left", "add credit at the provider")
	case s == http.StatusForbidden:
		if strings.Contains(strings.ToLower(errorMessage(ans.Body)), "limit exceeded") {
			return abi.Deny(abi.Budget, "the key's limit at the model provider is used up", "raise the workspace's cap")
		}
		return abi.Deny(abi.Denied, "the model provider forbids this request", "ask an admin to check the key's permissions and the provider's rules")
	case s == http.StatusNotFound:
		return abi.Deny(abi.Upstream, "the model provider has no such model, or none that keeps to the routing rules", "use another model")
	case s == http.StatusRequestEntityTooLarge:
		return abi.Deny(abi.TooLarge, "the conversation is too long for the model provider", "shorten it")
	case s == http.StatusTooManyRequests:
		d := abi.Deny(abi.Rate, "the model provider is asked too often", "wait and try again")
		d.RetryAfterMS = retryAfter(ans.Header)
		return d
	case s >= 400 && s < 500:
		return abi.Deny(abi.Invalid, "the model provider refuses the request with status "+strconv.Itoa(s), "check the messages and tools; the conversation may be too long for the model")
	case s >= 300 && s < 400:
		return abi.Deny(abi.Upstream, "the model provider redirects, which is not followed", "ask an admin to correct the base URL")
	}
	return &abi.Denial{
		Code: abi.Upstream, Reason: "the model provider failed with status " + strconv.Itoa(ans.Status),
		Effect: abi.OutcomeSent, Remedy: "try again later", RetryAfterMS: 5000,
	}
}

// broken is for an answer that stopped: it was computed at least in part, so it
// may cost up to the whole ceiling.
func broken(err error) *abi.Denial {
	d := &abi.Denial{Code: abi.Upstream, Reason: "the model's answer broke off", Effect: abi.OutcomeSent, Remedy: "try again"}
	switch {
	case errors.Is(err, connectors.ErrAnswerTooLarge):
		d.Code, d.Reason, d.Remedy = abi.TooLarge, "the model's answer is too long", "ask for a shorter answer"
	case errors.Is(err, context.DeadlineExceeded):
		d.Code, d.Reason = abi.Timeout, "the model did not finish in time"
	}
	return d
}

func errorMessage(r io.Reader) string {
	var x struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if r != nil {
		b, _ := io.ReadAll(io.LimitReader(r, 64<<10))
		_ = json.Unmarshal(b, &x)
	}
	return x.Error.Message
}

// retryAfter reads the header of that name in seconds; between 1 second and 5
// minutes.
func retryAfter(h map[string][]string) int64 {
	n, err := strconv.ParseInt(http.Header(h).Get("Retry-After"), 10, 32)
	if err != nil {
		return 5000
	}
	return min(max(n, 1), 300) * 1000
}

// printable keeps an id of the other side fit for a receipt.
func printable(s string) string {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return ""
		}
	}
	return s[:min(len(s), 128)]
}

// watched remembers how the body ended.
type watched struct {
	io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}
