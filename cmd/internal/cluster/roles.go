package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/cluster/ledger"
	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/ops"
	"postroad/signer/keyring"
)

// RolesOptions say how the postroad processes are run.
type RolesOptions struct {
	Programs Programs
	Launcher *process.Launcher
	Dir      string // for configuration, keys, logs and small state
	// Store is the data directory of the embedded queue. It is not used with
	// Servers.
	Store   string
	Servers *Servers
	// NextHops are where each delivery process sends everything, by its name.
	// There are as many delivery processes as entries.
	NextHops map[string]net.Addr
	Copies   int // of ingress and signer; default 2
	Window   int // of a delivery process; default 64
	// Env is asked for the environment of each start of a process, on top of
	// ours. May be nil.
	Env func(name string) []string
	// OnExit is told when a process ends; killed says that we did it.
	OnExit func(e process.Exit, killed bool)
	// Pause is asked before a process is started again.
	Pause func() time.Duration
}

// RelayDomain is whom the cluster speaks for.
const RelayDomain = "relay.chaos.test"

// BounceDomain is where bounces come back to; the ingress processes take them from anybody.
const BounceDomain = "bounces." + RelayDomain

// Roles are the postroad processes: one with the queue and the operators' way
// in, and several with each of the other roles.
type Roles struct {
	o       RolesOptions
	names   []string // in the order in which they start
	keepers map[string]*process.Keeper
	ingress map[string]string // name → where it takes mail
	queue   string            // address of the embedded queue
	socket  string
}

// QueueProcess is the name of the process with the queue.
const QueueProcess = "queue"

// NewRoles writes keys and configurations; Start runs the processes.
func NewRoles(o RolesOptions) (*Roles, error) {
	if o.Copies == 0 {
		o.Copies = 2
	}
	if o.Window == 0 {
		o.Window = 64
	}
	if o.Env == nil {
		o.Env = func(string) []string { return nil }
	}
	r := &Roles{o: o, keepers: make(map[string]*process.Keeper), ingress: make(map[string]string)}
	for _, domain := range []string{ledger.SenderDomain, RelayDomain} {
		if _, err := keyring.Generate(filepath.Join(o.Dir, "secrets"), domain, "chaos", keyring.RSA); err != nil {
			return nil, err
		}
	}
	var err error
	if r.queue, err = freeAddr(); err != nil {
		return nil, err
	}
	if err := r.add(QueueProcess, []string{"queue", "ops"}, UserAdmin, "", ""); err != nil {
		return nil, err
	}
	for i := range o.Copies {
		name := fmt.Sprintf("signer-%d", i+1)
		if err := r.add(name, []string{"signer"}, UserSigner, "", ""); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.NextHops)) {
		host, port, err := net.SplitHostPort(o.NextHops[name].String())
		if err != nil {
			return nil, fmt.Errorf("next hop of %s: %w", name, err)
		}
		// A job keeps its source: a few wait for the one process that has it.
		more := fmt.Sprintf(`  sources:
    - {name: own, ipv4: 127.0.0.2, nodes: [%s]}
    - {name: shared, ipv4: 127.0.0.3}
  pools:
    - {name: main, members: [{source: own, weight: 1}, {source: shared, weight: 19}]}
  pool: main
  routes:
    - {domains: ["*"], via: "smtp:[%s]:%s", tls: none, allow_private: true, verp: true}
  retry: [10s, 10s, 10s, 1m]
  max_age: 1d
  delay_notice: 0s
  window: %d
`, slices.Min(slices.Collect(maps.Keys(o.NextHops))), host, port, o.Window)
		if err := r.add(name, []string{"delivery"}, UserDelivery, "", more); err != nil {
			return nil, err
		}
	}
	for i := range o.Copies {
		name := fmt.Sprintf("ingress-%d", i+1)
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		r.ingress[name] = addr
		more := fmt.Sprintf("ingress:\n  listeners:\n    - {address: %q, trusted_networks: [\"127.0.0.0/8\"], bounces: accept}\n", addr)
		if err := r.add(name, []string{"ingress"}, UserIngress, more, ""); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// add writes the configuration of one process: delivery is what its section of that name has besides what all have.
func (r *Roles) add(name string, roles []string, user User, more, delivery string) error {
	var c strings.Builder
	data := filepath.Join(r.o.Dir, name)
	fmt.Fprintf(&c, "hostname: %s.%s\ndomain: %s\nroles: [%s]\nlog: {level: info, format: json}\nsecrets: {dir: %q}\n",
		name, RelayDomain, RelayDomain, strings.Join(roles, ", "), filepath.Join(r.o.Dir, "secrets"))
	switch {
	case r.o.Servers != nil:
		fmt.Fprintf(&c, "queue:\n  urls: [%s]\n  credentials: %q\n  inbox: _INBOX_%s\n  manage: %v\n  replicas: %d\n  node: %s\n",
			quoted(r.o.Servers.URLs()), r.o.Servers.Seed(user), user, user == UserAdmin, Copies, name)
	case name == QueueProcess:
		data = r.o.Store
		fmt.Fprintf(&c, "queue: {listen: %q, node: %s}\n", r.queue, name)
	default:
		fmt.Fprintf(&c, "queue: {urls: [%q], node: %s}\n", "nats://"+r.queue, name)
	}
	fmt.Fprintf(&c, "data_dir: %q\n", data)
	if name == QueueProcess {
		r.socket = filepath.Join(r.o.Dir, "ops.sock") // a path to a socket must be short
		fmt.Fprintf(&c, "ops: {socket: %q}\n", r.socket)
	}
	fmt.Fprintf(&c, "%sdelivery:\n  bounce_domain: %s\n%s", more, BounceDomain, delivery)
	conf := filepath.Join(r.o.Dir, name+".yaml")
	if err := os.WriteFile(conf, []byte(c.String()), 0o600); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	r.names = append(r.names, name)
	r.keepers[name] = process.NewKeeper(process.KeeperOptions{
		Launcher: r.o.Launcher, Pause: r.o.Pause, OnExit: r.o.OnExit,
		Spec: func() process.Spec {
			return process.Spec{
				Name: name, Path: r.o.Programs.Postroad, Args: []string{"serve", "-c", conf},
				Env: r.o.Env(name), Log: filepath.Join(r.o.Dir, name+".log"),
			}
		},
	})
	return nil
}

func quoted(items []string) string { return `"` + strings.Join(items, `", "`) + `"` }

// Start runs all processes, the queue first, and waits until mail is accepted.
func (r *Roles) Start(ctx context.Context) error {
	for _, name := range r.names {
		if err := r.keepers[name].Start(); err != nil {
			return err
		}
		if name == QueueProcess {
			if err := r.WaitQueue(ctx); err != nil {
				return fmt.Errorf("start %s: %w", name, err)
			}
		}
	}
	for name, addr := range r.ingress {
		if err := waitUp(ctx, r.keepers[name], addr); err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
	}
	return nil
}

// WaitQueue waits until the queue process answers: other processes on the
// embedded store, operators otherwise.
func (r *Roles) WaitQueue(ctx context.Context) error {
	if r.o.Servers == nil {
		return waitUp(ctx, r.keepers[QueueProcess], r.queue)
	}
	for {
		if _, err := r.Ops().Version(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the queue process does not answer: %w", context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Names are the processes in the order of their start.
func (r *Roles) Names() []string { return r.names }

// Keeper is what keeps a process running.
func (r *Roles) Keeper(name string) *process.Keeper { return r.keepers[name] }

// Ingress are the addresses that take mail.
func (r *Roles) Ingress() []string { return slices.Sorted(maps.Values(r.ingress)) }

// Ops is the operators' way in.
func (r *Roles) Ops() *ops.Client { return ops.NewClient(r.socket) }

// QueueURL is where the embedded queue listens.
func (r *Roles) QueueURL() string { return "nats://" + r.queue }

// Log is the file with the output of a process.
func (r *Roles) Log(name string) string { return filepath.Join(r.o.Dir, name+".log") }

// Stop ends all processes, the queue last.
func (r *Roles) Stop(ctx context.Context) error {
	var err error
	for _, name := range slices.Backward(r.names) {
		err = errors.Join(err, r.keepers[name].Stop(ctx))
	}
	return err
}
