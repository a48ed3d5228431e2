package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"postroad/cmd/internal/cluster/cut"
	"postroad/cmd/internal/cluster/process"
)

// Copies is the number of queue servers.
const Copies = 3

// User is a login of deploy/nats/accounts.conf.
type User string

// The users.
const (
	UserAdmin    User = "admin"
	UserIngress  User = "ingress"
	UserSigner   User = "signer"
	UserDelivery User = "delivery"
	UserOps      User = "ops"
	UserSystem   User = "system"
)

// Users are all of them.
func Users() []User {
	return []User{UserAdmin, UserIngress, UserSigner, UserDelivery, UserOps, UserSystem}
}

// ServersOptions say where the servers live.
type ServersOptions struct {
	Programs Programs
	Launcher *process.Launcher
	Dir      string // for stores, configuration, keys and logs
	// OnExit is told when a server ends; killed says that we did it.
	OnExit func(e process.Exit, killed bool)
	// Pause is asked before a server is started again.
	Pause func() time.Duration
}

// Servers are three nats-servers. Each one reaches the others, and is reached
// by clients, through links that can be cut.
type Servers struct {
	o       ServersOptions
	servers []*Server
}

// Server is one of them.
type Server struct {
	*process.Keeper
	Name    string
	client  string // where it listens itself
	cluster string
	door    *cut.Link   // clients come in here
	out     []*cut.Link // its own routes to the others
	conf    string
}

// NewServers writes the configuration of three servers; Start runs them.
func NewServers(o ServersOptions) (*Servers, error) {
	s := &Servers{o: o}
	for i := range Copies {
		sv := &Server{Name: fmt.Sprintf("queue-%d", i+1)}
		var err1, err2 error
		sv.client, err1 = freeAddr()
		sv.cluster, err2 = freeAddr()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		s.servers = append(s.servers, sv)
	}
	keys, err := s.makeKeys()
	if err != nil {
		return nil, err
	}
	for i, sv := range s.servers {
		if err := s.connect(i); err != nil {
			return nil, errors.Join(err, s.closeLinks())
		}
		if err := s.configure(i, keys); err != nil {
			return nil, errors.Join(err, s.closeLinks())
		}
		sv.Keeper = process.NewKeeper(process.KeeperOptions{
			Launcher: o.Launcher, Pause: o.Pause, OnExit: o.OnExit,
			Spec: func() process.Spec {
				return process.Spec{Name: sv.Name, Path: o.Programs.NATS, Args: []string{"-c", sv.conf}, Log: filepath.Join(o.Dir, sv.Name+".log")}
			},
		})
	}
	return s, nil
}

// makeKeys makes a key for every user, keeps the seeds and returns keys.conf.
func (s *Servers) makeKeys() (string, error) {
	var conf strings.Builder
	for _, u := range Users() {
		pair, err := nkeys.CreateUser()
		if err != nil {
			return "", fmt.Errorf("make a key: %w", err)
		}
		seed, err := pair.Seed()
		if err != nil {
			return "", fmt.Errorf("make a key: %w", err)
		}
		public, err := pair.PublicKey()
		if err != nil {
			return "", fmt.Errorf("make a key: %w", err)
		}
		if err := os.WriteFile(s.Seed(u), seed, 0o600); err != nil {
			return "", fmt.Errorf("keep a key: %w", err)
		}
		fmt.Fprintf(&conf, "%s_KEY: %q\n", strings.ToUpper(string(u)), public)
	}
	return conf.String(), nil
}

// connect makes the links of server i: one for its clients, and one to each of
// the others.
func (s *Servers) connect(i int) error {
	sv := s.servers[i]
	var err error
	if sv.door, err = cut.Listen(sv.client); err != nil {
		return err
	}
	for j, other := range s.servers {
		if i == j {
			continue
		}
		l, err := cut.Listen(other.cluster)
		if err != nil {
			return err
		}
		sv.out = append(sv.out, l)
	}
	return nil
}

// configure copies deploy/nats as it is and writes what differs.
func (s *Servers) configure(i int, keys string) error {
	sv := s.servers[i]
	dir := filepath.Join(s.o.Dir, sv.Name)
	sv.conf = filepath.Join(dir, "postroad.conf")
	// The servers tell each other where else they can be reached. Such a way
	// would lead around the links, so it leads nowhere.
	nowhere, err := freeAddr()
	if err != nil {
		return err
	}
	monitor, err := freeAddr()
	if err != nil {
		return err
	}
	var routes []string
	for _, l := range sv.out {
		routes = append(routes, fmt.Sprintf("%q", "nats-route://"+l.Addr()))
	}
	node := fmt.Sprintf("NODE: %q\nCLIENT_LISTEN: %q\nMONITOR_LISTEN: %q\nCLUSTER_LISTEN: %q\nCLUSTER_ADVERTISE: %q\nROUTES: [ %s ]\nDATA_DIR: %q\nDATA_BYTES: 40GB\n",
		sv.Name, sv.client, monitor, sv.cluster, nowhere, strings.Join(routes, ", "), filepath.Join(dir, "store"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("configure %s: %w", sv.Name, err)
	}
	files := map[string]string{"node.conf": node, "keys.conf": keys, "tls.conf": "# none on loopback\n"}
	for _, name := range []string{"postroad.conf", "accounts.conf"} {
		text, err := os.ReadFile(filepath.Join(s.o.Programs.Root, "deploy", "nats", name))
		if err != nil {
			return fmt.Errorf("configure %s: %w", sv.Name, err)
		}
		files[name] = string(text)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("configure %s: %w", sv.Name, err)
		}
	}
	return nil
}

// Start runs the servers and waits until each answers its clients.
func (s *Servers) Start(ctx context.Context) error {
	for _, sv := range s.servers {
		if err := sv.Keeper.Start(); err != nil {
			return err
		}
	}
	for _, sv := range s.servers {
		if err := waitUp(ctx, sv.Keeper, sv.client); err != nil {
			return fmt.Errorf("start %s: %w", sv.Name, err)
		}
	}
	return nil
}

// All are the servers in order.
func (s *Servers) All() []*Server { return s.servers }

// URLs are where clients reach them.
func (s *Servers) URLs() []string {
	var urls []string
	for _, sv := range s.servers {
		urls = append(urls, "nats://"+sv.door.Addr())
	}
	return urls
}

// Seed is the file with a user's key.
func (s *Servers) Seed(u User) string { return filepath.Join(s.o.Dir, string(u)+".nk") }

// Connect dials the servers as u.
func (s *Servers) Connect(u User, extra ...nats.Option) (*nats.Conn, error) {
	login, err := nats.NkeyOptionFromSeed(s.Seed(u))
	if err != nil {
		return nil, fmt.Errorf("log in as %s: %w", u, err)
	}
	o := append([]nats.Option{login, nats.CustomInboxPrefix("_INBOX_" + string(u))}, extra...)
	return nats.Connect(strings.Join(s.URLs(), ","), o...)
}

// Isolate cuts server i off from the others; from its clients, too, when
// clients says so. Octets wait at the cut until Rejoin.
func (s *Servers) Isolate(i int, clients bool) {
	for _, l := range s.routesOf(i) {
		l.Freeze()
	}
	if clients {
		s.servers[i].door.Freeze()
	}
}

// Rejoin ends Isolate.
func (s *Servers) Rejoin(i int) {
	for _, l := range s.routesOf(i) {
		l.Thaw()
	}
	s.servers[i].door.Thaw()
}

// routesOf are the links from and to server i.
func (s *Servers) routesOf(i int) []*cut.Link {
	links := append([]*cut.Link(nil), s.servers[i].out...)
	for j, other := range s.servers {
		if i == j {
			continue
		}
		k := i // place of i among the routes of j
		if i > j {
			k--
		}
		links = append(links, other.out[k])
	}
	return links
}

// Stop ends the servers.
func (s *Servers) Stop(ctx context.Context) error {
	var err error
	for _, sv := range s.servers {
		err = errors.Join(err, sv.Keeper.Stop(ctx))
	}
	return errors.Join(err, s.closeLinks())
}

func (s *Servers) closeLinks() error {
	var err error
	for _, sv := range s.servers {
		if sv.door != nil {
			err = errors.Join(err, sv.door.Close())
		}
		for _, l := range sv.out {
			err = errors.Join(err, l.Close())
		}
	}
	return err
}
