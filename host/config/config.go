// Package config reads what people write: workspace.yaml and operator.yaml.
//
// It knows the two forms, refuses what it does not know, and says where. It must
// not know how anything is enforced.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/getmonroe/monroe/abi"
	"github.com/getmonroe/monroe/host"
)

// Workspace is workspace.yaml: what an admin of the workspace decides.
type Workspace struct {
	Version   int            `yaml:"version" json:"version" enum:"1" doc:"form of this file"`
	Workspace host.Workspace `yaml:"workspace" json:"workspace" pattern:"^[a-z][a-z0-9-]{1,31}$" doc:"the workspace that this is for"`
	CapUSD    string         `yaml:"cap_usd" json:"cap_usd" pattern:"^[0-9]{1,9}(\\.[0-9]{1,6})?$" doc:"monthly cap in dollars, as text"`
	// IdenticalCalls breaks loops: what is over it is refused, and a run that makes
	// twice as many is stopped. 0 means the default of 10.
	IdenticalCalls int `yaml:"identical_calls,omitempty" json:"identical_calls,omitempty" minimum:"1" maximum:"10000" doc:"how often a run may make the same call with an effect or a price; 10 if absent"`
	// Connectors are the folders and mailboxes that may be granted at all.
	Connectors []Connector `yaml:"connectors,omitempty" json:"connectors,omitempty"`
	Grants     []Grant     `yaml:"grants,omitempty" json:"grants,omitempty"`
	// Approvers narrow who may say yes. Every line that names the operation holds.
	Approvers []Approvers `yaml:"approvers,omitempty" json:"approvers,omitempty"`
	// Groups are whom the policies' @approvers name.
	Groups []Group `yaml:"groups,omitempty" json:"groups,omitempty"`
	// Questions bounds how often a person is asked. 0 means the default of 20.
	Questions int      `yaml:"questions_per_hour,omitempty" json:"questions_per_hour,omitempty" minimum:"1" maximum:"10000" doc:"how many questions of a person's runs are asked within an hour or are open; the rest waits its turn; 20 if absent"`
	Policies  []string `yaml:"policies,omitempty" json:"policies,omitempty" doc:"Cedar files beside this one; they can only forbid"`
}

// Connector is one outside thing under a name of the workspace's own.
type Connector struct {
	Name string `yaml:"name" json:"name" pattern:"^[a-z][a-z0-9-]{0,31}$"`
	Kind string `yaml:"kind" json:"kind" enum:"files" doc:"files: a folder of this machine"`
	// Path must lie in a folder that the operator opened.
	Path string `yaml:"path,omitempty" json:"path,omitempty" doc:"absolute path of the folder"`
	// Internal says that members wrote what is in it. Without it, its text counts as
	// anybody's.
	Internal bool `yaml:"internal,omitempty" json:"internal,omitempty"`
	// ModelMayRead lets a model at the operator's endpoint see what is in it.
	ModelMayRead bool `yaml:"model_may_read,omitempty" json:"model_may_read,omitempty"`
}

// Approvers says who may approve calls of an operation.
type Approvers struct {
	Operation   string      `yaml:"operation" json:"operation" doc:"name of the operation, or * for all"`
	Roles       []host.Role `yaml:"roles,omitempty" json:"roles,omitempty" enum:"owner,admin,member" doc:"only people of these roles; without it owner, admin and member"`
	OtherPerson bool        `yaml:"other_person,omitempty" json:"other_person,omitempty" doc:"not the person for whom the run runs"`
}

// Group is whom a policy's @approvers may name.
type Group struct {
	Name   string      `yaml:"name" json:"name" pattern:"^[a-z][a-z0-9-]{0,31}$"`
	Roles  []host.Role `yaml:"roles,omitempty" json:"roles,omitempty" enum:"owner,admin,member" doc:"everybody with one of these roles"`
	People []string    `yaml:"people,omitempty" json:"people,omitempty" doc:"and these, by their address"`
}

// NobodyUID is the user that workers run as if nobody names one: nobody, on nearly
// every Linux.
const NobodyUID = 65534

// AnyOperation in a line of approvers means every operation.
const AnyOperation = "*"

// Grant is one line of the grant table.
type Grant struct {
	Skill     string      `yaml:"skill" json:"skill" doc:"name of a pushed skill; the grant is bound to its module of this moment"`
	Operation string      `yaml:"operation" json:"operation"`
	Resource  abi.Pattern `yaml:"resource" json:"resource"`
	Gate      host.Gate   `yaml:"gate,omitempty" json:"gate,omitempty" enum:"ask,deny" doc:"narrows what the operation's effect says"`
}

// Operator is operator.yaml: what only the operator decides. It is read from disk
// and the environment, never from the API.
type Operator struct {
	Version int `yaml:"version"`
	// Owner is minted at the first start.
	Owner Owner `yaml:"owner"`
	// Folders are the absolute paths in which a workspace's folders may lie.
	Folders []string  `yaml:"folders,omitempty"`
	Mail    Mail      `yaml:"mail,omitempty"`
	Model   Model     `yaml:"model,omitempty"`
	HTTP    HTTP      `yaml:"http,omitempty"`
	Ceiling []Ceiling `yaml:"ceilings,omitempty"`
	// Workers bounds how many runs are busy at the same time, 0 means 4.
	Workers int `yaml:"workers,omitempty"`
	// WorkerUID is the user and group that workers run as where the daemon is root and
	// forks them, 0 means NobodyUID. Give them one that nothing else has. A privileged
	// monroe up does not ask here: who has the daemon can write this file.
	WorkerUID uint32 `yaml:"worker_uid,omitempty"`
	// Minimum are the layers without which monroe doctor fails, absent means L0, L1 and
	// L2. Without those no guest runs, whatever stands here.
	Minimum []string `yaml:"minimum_walls,omitempty"`
	// Spares is how many workers wait with a module loaded for its next run, absent
	// means 2, at most 64.
	Spares *int  `yaml:"spare_workers,omitempty"`
	Waits  Waits `yaml:"waits,omitempty"`
	// Growth bounds the journal of each segment of a run that starts from now on.
	Growth    Growth    `yaml:"growth,omitempty"`
	Retention Retention `yaml:"retention,omitempty"`
	Keys      Keys      `yaml:"keys,omitempty"`
	Store     Store     `yaml:"store,omitempty"`
	// Plugins are connectors and scanners in programs of their own.
	Plugins []Plugin `yaml:"plugins,omitempty"`
	// Listen is a loopback address for the API, besides the socket.
	Listen string `yaml:"listen,omitempty"`
	Egress Egress `yaml:"egress,omitempty"`
}

// Egress says what follows when something leaves that belongs to no call.
type Egress struct {
	// KillRuns ends the runs whose calls had a connection at that moment.
	KillRuns bool `yaml:"kill_runs,omitempty"`
}

// MinimumWalls are the layers that the operator asks for.
func (o *Operator) MinimumWalls() []string {
	if o.Minimum == nil {
		return []string{"L0", "L1", "L2"}
	}
	return o.Minimum
}

// SpareWorkers is how many workers wait with a module loaded for its next run.
func (o *Operator) SpareWorkers() int {
	if o.Spares == nil {
		return 2
	}
	return *o.Spares
}

// Waits says how runs wait.
type Waits struct {
	// KeepWorker is the longest sleep for which a guest keeps its worker; absent means
	// 2 seconds, 0s never. At most a minute.
	KeepWorker *time.Duration `yaml:"keep_worker,omitempty"`
	// Wakes bounds how many waiting runs are woken in a second, 0 means 32.
	Wakes int `yaml:"wakes_per_second,omitempty"`
	// BudgetFor is how long a run waits for a higher cap or the next month before it is
	// ended, 0 means 35 days.
	BudgetFor time.Duration `yaml:"budget_for,omitempty"`
	// UnknownFor is how long a person is asked what became of an attempt, 0 means 7
	// days.
	UnknownFor time.Duration `yaml:"unknown_for,omitempty"`
}

// Keys says what seals the keyset's file. Without a key service it is in clear text.
type Keys struct {
	// KMS is the ARN of a key in AWS KMS; the environment's MONROE_KMS wins.
	KMS string `yaml:"kms,omitempty"`
	// Endpoint is another one than AWS's; the environment's MONROE_KMS_ENDPOINT wins.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Cache is how long work goes on after the service last answered, 0 means an hour.
	Cache time.Duration `yaml:"cache,omitempty"`
}

// Retention says how long the content of runs is kept.
type Retention struct {
	// Days after a run's end its content is erased; 0 means never. Headers, digests,
	// receipts and the audit log stay.
	Days int `yaml:"days,omitempty"`
}

// Growth is how large the journal of a segment may become.
type Growth = host.Growth

// Keep is the longest sleep for which a guest keeps its worker.
func (w Waits) Keep() time.Duration {
	if w.KeepWorker == nil {
		return 2 * time.Second
	}
	return *w.KeepWorker
}

// Owner is the first person of the workspace.
type Owner struct {
	Name  string `yaml:"name"`
	Email string `yaml:"email"`
}

// Store says where the state is kept. Without an address it is SQLite in the
// workspace's directory.
type Store struct {
	// Postgres is postgres://role@host/database?sslmode=verify-full, without the
	// password. The environment's MONROE_STORE wins, and may hold the password.
	Postgres string `yaml:"postgres,omitempty"`
	// PasswordFile holds the role's password; the environment's MONROE_STORE_PASSWORD
	// wins.
	PasswordFile string `yaml:"password_file,omitempty"`
}

// Ceiling is the most that a workspace may grant.
type Ceiling = host.Ceiling

// Mail says how mail leaves. Without a server it goes into a Maildir.
type Mail struct {
	From    string `yaml:"from,omitempty"`
	Maildir string `yaml:"maildir,omitempty"` // absolute path; empty: <workspace>/Maildir
	SMTP    string `yaml:"smtp,omitempty"`    // host:port
	User    string `yaml:"user,omitempty"`
	// PasswordFile holds the password; the environment's MONROE_SMTP_PASSWORD wins.
	PasswordFile string `yaml:"password_file,omitempty"`
	ImplicitTLS  bool   `yaml:"implicit_tls,omitempty"`
	PlainText    bool   `yaml:"plain_text,omitempty"`
}

// Model is the endpoint that llm.chat uses.
type Model struct {
	BaseURL string `yaml:"base_url,omitempty"` // empty: OpenRouter
	// KeyFile holds the key; the environment's OPENROUTER_API_KEY or MONROE_MODEL_KEY wins.
	KeyFile string  `yaml:"key_file,omitempty"`
	Default string  `yaml:"default,omitempty"`
	Allowed []Price `yaml:"allowed,omitempty"`
	// Private lets the endpoint be an address that is not public, such as an Ollama on
	// this machine.
	Private bool `yaml:"private,omitempty"`
	// MaxTokens sends the output limit as max_tokens, for endpoints that do not know
	// max_completion_tokens.
	MaxTokens bool `yaml:"max_tokens,omitempty"`
}

// Price is one allowed model. Prices are dollars for a million tokens, as text.
type Price struct {
	Model     string `yaml:"model"`
	InputUSD  string `yaml:"input_usd_per_million"`
	OutputUSD string `yaml:"output_usd_per_million"`
	MaxOutput int64  `yaml:"max_output_tokens"`
}

// HTTP says what of the web is open beyond public pages.
type HTTP struct {
	// Private are single private addresses that http.fetch and the endpoints may reach,
	// as host:port.
	Private []string `yaml:"private,omitempty"`
	// Endpoints are opened for changes. Each becomes the operation http.<name>, which a
	// workspace can grant.
	Endpoints []Endpoint `yaml:"endpoints,omitempty"`
}

// Endpoint is one place that takes changes. What is left out is the careful choice.
type Endpoint struct {
	Name    string          `yaml:"name"`
	Summary string          `yaml:"summary,omitempty"`
	Method  string          `yaml:"method,omitempty"` // POST, PUT, PATCH or DELETE; empty: POST
	URL     abi.Pattern     `yaml:"url"`
	Effect  abi.Effect      `yaml:"effect,omitempty"` // write, send, delete, share, pay or metered; empty: send
	Replay  abi.ReplayClass `yaml:"replay,omitempty"` // keyed, conditional or blind; empty: blind
	// Window is how long the other side knows an idempotency key again.
	Window    time.Duration `yaml:"window,omitempty"`
	KeyHeader string        `yaml:"key_header,omitempty"` // empty: Idempotency-Key
	PriceUSD  string        `yaml:"price_usd,omitempty"`  // of one call
	Timeout   time.Duration `yaml:"timeout,omitempty"`    // of one attempt; 0: 30s
	// TokenFile holds the credential. It is sent in TokenHeader, Authorization if that
	// is empty, with TokenPrefix before it, "Bearer " if that is absent.
	TokenFile   string  `yaml:"token_file,omitempty"`
	TokenHeader string  `yaml:"token_header,omitempty"`
	TokenPrefix *string `yaml:"token_prefix,omitempty"`
}

// Plugin is a program beside the daemon. What stands here counts, never what it says of
// itself: a plugin that describes itself otherwise is refused.
type Plugin struct {
	Name   string `yaml:"name"`
	Kind   string `yaml:"kind"`   // connector or scanner
	Path   string `yaml:"path"`   // absolute
	SHA256 string `yaml:"sha256"` // of the program, hexadecimal
	// Private are single private addresses that its operations may reach, as host:port.
	Private []string `yaml:"private,omitempty"`
	// Operations are those of a connector.
	Operations []PluginOperation `yaml:"operations,omitempty"`
	// Findings are what a scanner may answer with.
	Findings []PluginFinding `yaml:"findings,omitempty"`
}

// PluginOperation is the pinned descriptor of one operation.
type PluginOperation struct {
	Name    string          `yaml:"name"` // plugin.verb
	Version int             `yaml:"version"`
	Summary string          `yaml:"summary"`
	Effect  abi.Effect      `yaml:"effect"`
	Replay  abi.ReplayClass `yaml:"replay"` // pure, keyed or blind
	Args    string          `yaml:"args"`   // JSON Schema
	Allow   []PluginRequest `yaml:"allow"`
	// Headers are those that the plugin may set.
	Headers []string `yaml:"headers,omitempty"`
	// Window and KeyHeader are those of a keyed operation.
	Window    time.Duration `yaml:"window,omitempty"`
	KeyHeader string        `yaml:"key_header,omitempty"`
	// Resource is what a grant has to cover; empty: the URL without its query.
	Resource string `yaml:"resource,omitempty"`
	// Audience sees the request, and Readers may see the reply, besides the host that
	// the request goes to.
	Audience []string      `yaml:"audience,omitempty"`
	Readers  []string      `yaml:"readers,omitempty"`
	PriceUSD string        `yaml:"price_usd,omitempty"` // of one call
	Timeout  time.Duration `yaml:"timeout,omitempty"`   // of one attempt; 0: 30s
	// TokenFile holds the credential, as for an endpoint. Its operation can reach one
	// host only.
	TokenFile   string  `yaml:"token_file,omitempty"`
	TokenHeader string  `yaml:"token_header,omitempty"`
	TokenPrefix *string `yaml:"token_prefix,omitempty"`
}

// PluginRequest is one kind of request.
type PluginRequest struct {
	Method string      `yaml:"method"`
	URL    abi.Pattern `yaml:"url"`
}

// PluginFinding is what is said when a scanner answers with an id.
type PluginFinding struct {
	ID     string `yaml:"id"`
	Reason string `yaml:"reason"`
}

func problem(code, format string, args ...any) error {
	return &host.Problem{Kind: host.ErrInvalid, Code: code, Detail: fmt.Sprintf(format, args...), Remedy: "correct the file and apply it again; nothing was changed"}
}

var nameForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// ParseWorkspace reads and checks workspace.yaml. Unknown keys are refused.
func ParseWorkspace(text []byte) (*Workspace, error) {
	var w Workspace
	if err := strict(text, &w); err != nil {
		return nil, problem("CONFIG_SYNTAX", "workspace.yaml: %v", err)
	}
	if w.Version != 1 {
		return nil, problem("CONFIG_VERSION", "workspace.yaml: version is %d, this host reads version 1", w.Version)
	}
	if err := w.Workspace.Check(); err != nil {
		return nil, problem("CONFIG_WORKSPACE", "workspace.yaml: %v", err)
	}
	if _, err := ParseUSD(w.CapUSD); err != nil {
		return nil, problem("CONFIG_CAP", "workspace.yaml: cap_usd: %v", err)
	}
	if w.IdenticalCalls < 0 || w.IdenticalCalls > 10_000 {
		return nil, problem("CONFIG_IDENTICAL", "workspace.yaml: identical_calls: 1 to 10000, or leave it out for the default")
	}
	seen := map[string]bool{}
	for _, c := range w.Connectors {
		switch {
		case !nameForm.MatchString(c.Name):
			return nil, problem("CONFIG_CONNECTOR", "connectors: name %q: a lower-case letter, then letters, digits or -", c.Name)
		case seen[c.Name]:
			return nil, problem("CONFIG_CONNECTOR", "connectors: %q occurs twice", c.Name)
		case c.Kind != "files":
			return nil, problem("CONFIG_CONNECTOR", "connectors: %s: kind %q is not known; files is", c.Name, c.Kind)
		case !filepath.IsAbs(c.Path) || filepath.Clean(c.Path) != c.Path:
			return nil, problem("CONFIG_CONNECTOR", "connectors: %s: path %q is not a clean absolute path", c.Name, c.Path)
		}
		seen[c.Name] = true
	}
	for i, g := range w.Grants {
		if g.Skill == "" || g.Operation == "" {
			return nil, problem("CONFIG_GRANT", "grants: line %d needs a skill and an operation", i+1)
		}
		if err := abi.CheckPattern(g.Resource); err != nil {
			return nil, problem("CONFIG_GRANT", "grants: line %d: %v", i+1, err)
		}
		if g.Gate != host.GateDefault && g.Gate != host.GateAsk && g.Gate != host.GateDeny {
			return nil, problem("CONFIG_GRANT", "grants: line %d: gate %q: leave it out, or write ask or deny", i+1, g.Gate)
		}
	}
	for i, a := range w.Approvers {
		if a.Operation == "" || len(a.Roles) == 0 && !a.OtherPerson {
			return nil, problem("CONFIG_APPROVERS", "approvers: line %d needs an operation, and roles or other_person", i+1)
		}
		for _, r := range a.Roles {
			if r != host.RoleOwner && r != host.RoleAdmin && r != host.RoleMember {
				return nil, problem("CONFIG_APPROVERS", "approvers: line %d: role %q: owner, admin and member can approve", i+1, r)
			}
		}
	}
	if w.Questions < 0 || w.Questions > 10000 {
		return nil, problem("CONFIG_QUESTIONS", "workspace.yaml: questions_per_hour: 1 to 10000, or leave it out for the default")
	}
	groups := map[string]bool{}
	for _, g := range w.Groups {
		switch {
		case !nameForm.MatchString(g.Name):
			return nil, problem("CONFIG_GROUP", "groups: name %q: a lower-case letter, then letters, digits or -", g.Name)
		case groups[g.Name]:
			return nil, problem("CONFIG_GROUP", "groups: %q occurs twice", g.Name)
		case len(g.Roles)+len(g.People) == 0:
			return nil, problem("CONFIG_GROUP", "groups: %s holds nobody: it needs roles or people", g.Name)
		}
		for _, r := range g.Roles {
			if r != host.RoleOwner && r != host.RoleAdmin && r != host.RoleMember {
				return nil, problem("CONFIG_GROUP", "groups: %s: role %q: owner, admin and member can approve", g.Name, r)
			}
		}
		groups[g.Name] = true
	}
	for _, p := range w.Policies {
		if p == "" || filepath.Base(p) != p || !strings.HasSuffix(p, ".cedar") {
			return nil, problem("CONFIG_POLICY", "policies: %q is not the name of a .cedar file beside workspace.yaml", p)
		}
	}
	return &w, nil
}

// ReadOperator reads operator.yaml. A missing file is an empty one.
func ReadOperator(path string) (*Operator, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		b, err = []byte("version: 1\n"), nil
	}
	if err != nil {
		return nil, fmt.Errorf("operator.yaml: %w", err)
	}
	var o Operator
	if err := strict(b, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if o.Version != 1 {
		return nil, fmt.Errorf("%s: version is %d, this host reads version 1", path, o.Version)
	}
	for _, f := range o.Folders {
		if !filepath.IsAbs(f) || filepath.Clean(f) != f {
			return nil, fmt.Errorf("%s: folders: %q is not a clean absolute path", path, f)
		}
	}
	if k := o.Waits.Keep(); k < 0 || k > time.Minute || o.Waits.Wakes < 0 || o.Waits.UnknownFor < 0 || o.Waits.BudgetFor < 0 {
		return nil, fmt.Errorf("%s: waits: keep_worker is 0s to 1m, and nothing is negative", path)
	}
	if err := o.Growth.Check(); err != nil {
		return nil, fmt.Errorf("%s: growth: %w", path, err)
	}
	if o.Keys.Cache < 0 || o.Keys.Cache > 24*time.Hour {
		return nil, fmt.Errorf("%s: keys: cache is at most 24h", path)
	}
	if o.Retention.Days < 0 {
		return nil, fmt.Errorf("%s: retention: days is not negative", path)
	}
	if n := o.SpareWorkers(); n < 0 || n > 64 {
		return nil, fmt.Errorf("%s: spare_workers is 0 to 64", path)
	}
	for _, id := range o.Minimum {
		if !slices.Contains([]string{"L0", "L1", "L2", "L3", "L4", "L5"}, id) {
			return nil, fmt.Errorf("%s: minimum_walls: %q is none of L0 to L5", path, id)
		}
	}
	if o.Owner.Name == "" {
		o.Owner.Name = "Owner"
	}
	if o.Owner.Email == "" {
		o.Owner.Email = "owner@localhost"
	}
	if o.Workers == 0 {
		o.Workers = 4
	}
	if o.WorkerUID == 0 {
		o.WorkerUID = NobodyUID
	}
	return &o, nil
}

// strict decodes one YAML document and refuses unknown keys.
func strict(text []byte, v any) error {
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it is empty")
		}
		return err
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return errors.New("it holds more than one document")
	}
	return nil
}

// ParseUSD reads dollars, such as "5" or "0.25", exactly.
func ParseUSD(s string) (abi.MicroUSD, error) {
	n, err := decimal(s, 6)
	return abi.MicroUSD(n), err
}

// ParsePrice reads dollars for a million units, exactly: a millionth of that is a
// unit's price.
func ParsePrice(s string) (abi.PicoUSD, error) {
	n, err := decimal(s, 6)
	return abi.PicoUSD(n), err
}

var decimalForm = regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,6})?$`)

// decimal reads a number without sign as an integer of 10^-digits.
func decimal(s string, digits int) (int64, error) {
	if !decimalForm.MatchString(s) {
		return 0, fmt.Errorf("%q is not an amount such as 5 or 0.25", s)
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return 0, fmt.Errorf("%q is not an amount such as 5 or 0.25", s)
	}
	r.Mul(r, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits)), nil)))
	return r.Num().Int64(), nil
}
